"""Components with random masks, and the same model computed with the masked matrices written out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from param_features.fit.components import CleanPass, MaskedModel, Masks, Parts, not_applied_once
from param_features.gradients import GradientEngine, no_matrix_at_one_place, sites_of, without_components
from param_features.params import ParamSubset, ParamView, adapter_for, held_still
from param_features.problem import ModelInputs
from tests.oracle import case_of

N = 3
"""Components of each matrix."""


_HEADS = ("d", "hde", "he")
_PLAIN = ("i", "io", "o")
_LENS = {
    "W_Q": ("query_input", _HEADS, "b_Q", "hook_q"),
    "W_K": ("key_input", _HEADS, "b_K", "hook_k"),
    "W_V": ("value_input", _HEADS, "b_V", "hook_v"),
    "W_O": ("hook_z", ("he", "hed", "d"), "b_O", None),
    "W_in": (None, _PLAIN, "b_in", "hook_pre"),
    "W_gate": (None, _PLAIN, "", "hook_pre"),
    "W_out": ("hook_post", _PLAIN, "b_out", None),
    "W_U": (None, _PLAIN, "b_U", None),
    "W_E": (None, None, "", None),
}
"""Of each kind of matrix: what it reads, its product, its bias, and where that shows."""


@dataclass(frozen=True)
class MaskedCase:
    """A model's matrices with random components, some rows, and what the model makes of them."""

    model: MaskedModel
    data: ModelInputs
    parts: dict[str, Parts]
    remainders: dict[str, Tensor]
    clean: CleanPass

    @property
    def names(self) -> list[str]:
        return list(self.parts)

    def views(self) -> list[ParamView]:
        return list(self.model.engine.subset.views)

    def masks(self, *, varies: bool = True, seed: int = 1) -> Masks:
        """Random masks: of every row and position, or the same at all positions of a row."""
        generator, found, rests = torch.Generator().manual_seed(seed), {}, {}
        for name, applied in self.clean.applied.items():
            rows, pos, like = len(applied), applied.shape[1], self.remainders[name]
            shape = (rows, pos if varies else 1)
            drawn = torch.rand(*shape, N + 1, generator=generator, dtype=torch.float64).to(like).expand(rows, pos, N + 1)
            found[name], rests[name] = drawn[..., :-1], drawn[..., -1]
        return Masks(found, rests)

    def at_called_layers(self, masks: Masks) -> Masks:
        """Without matrices whose layer is not called as a module: a bridge computes some from hook points of its own."""
        names = [site.name for site in self.model.sites if site.tap.output.module is site.view.owner]
        return Masks({name: masks.components[name] for name in names}, {name: masks.remainders[name] for name in names})

    def ones(self) -> Masks:
        masks = self.masks()
        return Masks(
            *({name: torch.ones_like(mask) for name, mask in kind.items()} for kind in (masks.components, masks.remainders))
        )

    def run(self, masks: Masks) -> Tensor:
        with self.model.held(), torch.no_grad():
            return self.model.masked(self.data, self.parts, masks, self.remainders)

    def matrix(self, name: str, masks: Masks, row: int, pos: int = 0) -> Tensor:
        """U diag(m) Vᵀ + m_Δ Δ at one position."""
        parts, mask = self.parts[name], masks.components[name][row, pos]
        return (parts.U.T * mask) @ parts.V + masks.remainders[name][row, pos] * self.remainders[name]

    def by_rows(self, masks: Masks) -> Tensor:
        """Every row alone, through a model whose weights are written over; masks are the same at all positions of a row."""
        outputs = []
        with held_still(self.model.engine.adapter.module), torch.no_grad():
            for row in range(len(self.data)):
                with ExitStack() as stack:
                    for view in self.views():
                        stack.enter_context(written_over(view, self.matrix(view.name, masks, row)))
                    outputs.append(self.model._output(self.data.rows([row])))
        return torch.cat(outputs)

    def by_positions(self, masks: Masks) -> Tensor:
        """By plain forward hooks: each layer runs once for every row and position, with that position's matrix."""
        with held_still(self.model.engine.adapter.module), torch.no_grad(), ExitStack() as stack:
            for site in self.model.sites:
                if site.name not in masks.components:
                    continue
                hook = self._hook(site.view, site.tap.rows, masks)
                stack.callback(site.view.owner.register_forward_hook(hook).remove)
            return self.model._output(self.data)

    def _hook(self, view: ParamView, rows: Tensor | None, masks: Masks) -> Callable:
        def hook(layer: Any, args: tuple, output: Tensor) -> Tensor:
            found, chosen = output.clone(), slice(None) if rows is None else rows
            for row, pos in self._places(view.name):
                with written_over(view, self.matrix(view.name, masks, row, pos)):
                    value = type(layer).forward(layer, args[0])
                self._flat(layer, found)[row, pos, chosen] = self._flat(layer, value)[row, pos, chosen]
            return found

        return hook

    def by_lens_hooks(self, masks: Masks) -> Tensor:
        """By TransformerLens' own hook points: every matrix's product, by hand, with a matrix for every row and position."""
        lens = self.model.engine.adapter.model
        with held_still(lens), torch.no_grad(), ExitStack() as stack:
            for view in self.views():
                path, _, key = view.name.rpartition(".")
                self._by_hand(lens.get_submodule(path), key.lstrip("_"), view, masks, stack)
            return self.model._output(self.data)

    def _by_hand(self, layer: Any, key: str, view: ParamView, masks: Masks, stack: ExitStack) -> None:
        rows, pos = self.clean.applied[view.name].shape[:2]
        matrices = torch.stack([self.matrix(view.name, masks, row, p) for row in range(rows) for p in range(pos)])
        W = view.from_matrix(matrices.reshape(rows, pos, *view.matrix_shape))
        entry, product, bias, out = _LENS[key]
        out = "hook_pre_linear" if key == "W_in" and hasattr(layer, "W_gate") else out
        held = layer._parameters
        bias = None if out == "hook_pre_linear" else held.get(bias, held.get(f"_{bias}"))
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen[:] = [args[0] if entry is None or not kwargs else kwargs[entry]]

        def replace_output(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            if product is None:  # a table of tokens
                return W.gather(2, seen[0][..., None, None].expand(-1, -1, 1, W.shape[-1]))[:, :, 0]
            heads = "h" if seen[0].dim() == 4 and "h" not in product[0] else ""
            found = torch.einsum(f"rp{heads}{product[0]},rp{product[1]}->rp{product[2]}", seen[0], W)
            return found if bias is None else found + bias

        source = layer.get_submodule(entry) if entry is not None and entry.startswith("hook") else layer
        stack.callback(source.register_forward_pre_hook(see, with_kwargs=True).remove)
        target = layer if out is None else layer.get_submodule(out)
        stack.callback(target.register_forward_hook(replace_output).remove)

    def _places(self, name: str) -> Iterator[tuple[int, int]]:
        rows, pos = self.clean.applied[name].shape[:2]
        return ((row, position) for row in range(rows) for position in range(pos))

    def _flat(self, layer: nn.Module, output: Tensor) -> Tensor:
        """An output as [row pos d_out], in the same memory."""
        if isinstance(layer, nn.Conv1d | nn.Conv2d):
            return output.view(*output.shape[:2], -1).transpose(1, 2)
        return output.view(len(self.data), -1, output.shape[-1])


def masked_case(model: Any, params: Any = None, **given: Any) -> MaskedCase:
    """Random components of some parameters, or of all that have any."""
    adapter = adapter_for(model)
    if params is None:
        views = adapter.views().values()
        params = [view.name for view in views if no_matrix_at_one_place(view, len(view.places)) is None]
    case = case_of(model, params, **given)
    engine = with_components(case.engine, case.data)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held():
        clean = masked.clean(case.data)
    generator = torch.Generator().manual_seed(0)
    parts = {site.name: _random_parts(site.weight(), generator) for site in masked.sites}
    remainders = {site.name: parts[site.name].remainder(site.weight()) for site in masked.sites}
    return MaskedCase(masked, case.data, parts, remainders, clean)


def with_components(engine: GradientEngine, data: ModelInputs) -> GradientEngine:
    """The engine of those parameters that have components."""
    for refused in (without_components, lambda engine: not_applied_once(engine, sites_of(engine), data)):
        left = [view for view in engine.subset.views if view.name not in refused(engine)]
        routes = replace(engine.routes.only([view.name for view in left]), through_head=False, cut=None)
        engine = replace(engine, subset=ParamSubset(tuple(left)), routes=routes)
    return engine


def _random_parts(weight: Tensor, generator: torch.Generator) -> Parts:
    U, V = (torch.randn(N, size, generator=generator, dtype=torch.float64).to(weight) for size in weight.shape)
    return Parts(0.3 * U, V)


@contextmanager
def written_over(view: ParamView, matrix: Tensor) -> Iterator[None]:
    """Run a block with another matrix in the stored parameter."""
    old = view.stored.detach().clone()
    try:
        view.stored.data.copy_(view.layout.write(view.from_matrix(matrix).to(old), old))
        yield
    finally:
        view.stored.data.copy_(old)
