"""Acting where a pass applies a parameter: its input and output there, laid out as a matrix product by the layer rule."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from param_features.errors import AdapterError
from param_features.gradients.capture import argument
from param_features.gradients.engine import GradientEngine
from param_features.gradients.foreign_forward import uneven_layers
from param_features.gradients.rows import at_least_float32, by_row
from param_features.gradients.rules import required_rule
from param_features.gradients.types import Factored, Indexed
from param_features.gradients.within_forward import WithinForward
from param_features.machine import has_saved_tensor_hooks, saved_as_they_are, uncompiled
from param_features.params import ParamView, Tap, hooked

Applied = Float[Tensor, "row _pos _d_in"] | Int[Tensor, "row _pos"]
"""What a matrix is applied to at every position of every row; of a table the index of the column that it reads."""

_Layout = tuple[tuple[int, ...] | None, int]
"""The order of the axes row, pos and d_out in which an output holds them, None where it holds them otherwise; and d_out."""


@dataclass(frozen=True, eq=False)
class MatrixSite:
    """The one place where a pass applies a parameter as a matrix: y = W a at every position of every row.

    Attributes:
        view: The parameter.
        tap: Where its input and output show.
    """

    view: ParamView
    tap: Tap
    _layouts: dict[tuple, _Layout] = field(default_factory=dict, init=False, repr=False)

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.view.name

    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """W as it is now, in float32 at least; not for editing."""
        return at_least_float32(self.view.to_matrix(self.view.tensor.detach()))

    def applied(self, source: Tensor, output: Tensor, n_rows: int) -> Applied:
        """What W is applied to, from the tensors at the tap; differentiable. Convolutions: the patches of all pixels.

        Raises:
            AdapterError: The parameter is not applied as a matrix, or each head reads an input of its own.
        """
        nothing = torch.zeros((), dtype=_precision(output), device=output.device).expand(output.shape)
        gradient = self._laid_out(self._of_all_heads(source), nothing, n_rows)
        return gradient.inputs if isinstance(gradient, Factored) else gradient.index

    def added(
        self, change: Float[Tensor, "row pos d_out"], source: Tensor, output: Tensor, n_rows: int
    ) -> Float[Tensor, " *shape"]:
        """The output with W's part changed at every position; a change of zeros leaves every bit.

        Where the rule only looks at the output in another shape, so does this; otherwise it is the rule's transpose.
        """
        order, d_out = self._layout(source, output, n_rows)
        if order is None:
            return output + self._by_transpose(change, source, output, n_rows).to(output.dtype)
        if self.tap.rows is not None:
            whole = change.new_zeros(*change.shape[:2], d_out)
            change = whole.index_copy(2, self.tap.rows.to(change.device), change)
        return output + change.permute(order).reshape(output.shape).to(output.dtype)

    def _layout(self, source: Tensor, output: Tensor, n_rows: int) -> _Layout:
        """How outputs of this shape hold [row pos d_out], told by where the rule takes a row's numbers."""
        key = (source.shape, output.shape, n_rows)
        if key not in self._layouts:
            row = self._of_all_heads(source.detach()[: len(source) // n_rows])
            if not row.is_floating_point():
                row = torch.full_like(row, _index_read(self.tap.layer))
            shape = (len(output) // n_rows, *output.shape[1:])
            numbers = torch.arange(math.prod(shape), dtype=torch.float64, device=output.device)
            laid = self._laid_out(row, numbers.reshape(shape), 1, is_whole=True).delta
            orders = [order for order in _ORDERS if torch.equal(laid.permute(order).reshape(-1), numbers)]
            self._layouts[key] = next(iter(orders), None), laid.shape[2]
        return self._layouts[key]

    def _by_transpose(self, change: Tensor, source: Tensor, output: Tensor, n_rows: int) -> Tensor:
        source = self._of_all_heads(source.detach())
        if not source.is_floating_point():
            source = torch.full_like(source, _index_read(self.tap.layer))

        def overlap(delta: Tensor) -> Tensor:
            return (self._laid_out(source, delta, n_rows).delta * change).sum()

        return transposed(overlap, torch.zeros(output.shape, dtype=change.dtype, device=output.device))

    def _of_all_heads(self, source: Tensor) -> Tensor:
        """The input that TransformerLens repeats for every head when told to, [row pos head d_in], once."""
        if self.tap.rule != "heads" or source.dim() < 4:
            return source
        first = source[:, :, 0]
        if not torch.equal(source, first.unsqueeze(2).expand_as(source)):
            raise AdapterError(
                f"{self.name!r} reads another input for each head, and components have one importance at each position. "
                "Take away the hooks that change what single heads read, or choose other parameters."
            )
        return first

    def _laid_out(self, source: Tensor, delta: Tensor, n_rows: int, *, is_whole: bool = False) -> Factored | Indexed:
        source = by_row(at_least_float32(source) if source.is_floating_point() else source, n_rows)
        gradient = required_rule(self.tap.rule, self.tap.attribute)(self.tap.layer, source, by_row(delta, n_rows))
        if not isinstance(gradient, Factored | Indexed):
            raise AdapterError(f"{self.name!r} is not applied as a matrix at every position: {_MATRICES}")
        return gradient if is_whole or self.tap.rows is None else gradient.rows(self.tap.rows.to(delta.device))


_ORDERS = ((0, 1, 2), (0, 2, 1))


def _precision(output: Tensor) -> torch.dtype:
    return torch.promote_types(output.dtype, torch.float32)


def _index_read(layer: object) -> int:
    """An index that no table takes for padding, whose column has no gradient but is read all the same."""
    return 1 if getattr(layer, "padding_idx", None) == 0 else 0


_MATRICES = (
    "only matrices of linear layers, attention, MLPs, tables of tokens and convolutions without groups have components. "
    "Biases and gains of norms have none."
)


def sites_of(engine: GradientEngine) -> list[MatrixSite]:
    """The site of every parameter of the engine, in order.

    Raises:
        AdapterError: A parameter has no layer rule, is no matrix, or is applied at several places.
    """
    for why in without_components(engine).values():
        raise AdapterError(why)
    return [MatrixSite(view, engine.routes.taps[view.name][0]) for view in engine.subset.views]


def without_components(engine: GradientEngine) -> dict[str, str]:
    """The parameters of the engine that have no site, each with the reason in a sentence, in order.

    Cost: nothing but for layers with a forward of their own and tables that limit norms, see `uneven_layers`.
    """
    unruled = _without_rule(engine)
    uneven = {} if engine.origin is None else uneven_layers(engine, engine.origin.problem.data)
    found = {}
    for view in engine.subset.views:
        why = no_matrix_at_one_place(view, len(engine.routes.taps.get(view.name, view.places)))
        if why is None and view.name in unruled:
            why = f"Components need {unruled[view.name]}. Choose other parameters."
        if why is None and view.name in uneven:
            why = (
                f"{view.name!r} is not applied as it is: its layer computes with what it makes of it, such as "
                "rounded values or limited norms. Components sum to the weights themselves. Choose other parameters."
            )
        if why is not None:
            found[view.name] = why
    return found


def no_matrix_at_one_place(view: ParamView, n_places: int) -> str | None:
    """Why a parameter has no components, as far as it shows without a pass of the model; None where nothing shows.

    Args:
        view: The parameter.
        n_places: At how many places of the model it is applied.
    """
    if n_places != 1:
        return (
            f"{view.name!r} is applied at {n_places} places of the model (tied weights), and components have one "
            "importance at each position. Untie the model, or choose other parameters."
        )
    return f"{view.name!r} is no matrix: {_MATRICES}" if min(view.matrix_shape) == 1 else None


def check_rules(engine: GradientEngine, *, needs: str, instead: str) -> None:
    """Refuse parameters whose part of an output cannot be told apart.

    Args:
        engine: Knows each parameter's route.
        needs: What needs the rule, with its verb.
        instead: What to do without.

    Raises:
        AdapterError: A parameter has no layer rule here, or its layer goes on to compute from what it gives.
    """
    for why in _without_rule(engine).values():
        raise AdapterError(f"{needs} {why}. {instead}")


def _without_rule(engine: GradientEngine) -> dict[str, str]:
    """Parameters whose part of an output cannot be told apart, and what would be needed; those with a rule first."""
    found = {}
    for name, taps in engine.routes.taps.items():
        if any(tap.output in engine.gathering for tap in taps):
            found[name] = f"the positions of a batch in order, and the layer of {name!r} is called on some"
        elif any(tap.input.which == "call" for tap in taps):
            found[name] = f"what {name!r} itself gives, and its layer shows only what all experts give together"
    for name in engine.subset.names:
        if name not in engine.routes.taps:
            why = engine.routes.why_dense.get(name, "its layer shows no module around it")
            found[name] = f"a layer rule for every parameter, and {name!r} has none here ({why})"
    return found


@contextmanager
def acting_on(sites: list[MatrixSite], act: Callable[[MatrixSite, Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Within the block each site's layer passes on what `act` makes of (site, tapped input, tapped output)."""
    with uncompiled(), ExitStack() as stack, hooked():
        for site in sites:
            for handle in acting_at(site.tap, lambda source, output, site=site: act(site, source, output)):
                stack.callback(handle.remove)
        yield


def acting_at(tap: Tap, act: Callable[[Tensor, Tensor], Tensor]) -> Iterator[WithinForward | RemovableHandle]:
    """Act at a tap so that each call of its layer passes on what `act` makes of (tapped input, tapped output).

    Hooks of the user and traces of nnsight see the output with its change, as they would with a changed weight.
    """
    inputs: list[Tensor] = []

    def change(forward: Callable, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return act(inputs[-1], output) if isinstance(output, Tensor) and inputs else output

    yield WithinForward(tap.output.module, change)
    yield from _watched(tap, lambda tensor: inputs.__setitem__(slice(None), [tensor]))


def _watched(tap: Tap, receive: Callable[[Tensor], None]) -> Iterator[WithinForward | RemovableHandle]:
    """Hand on the tensor that reaches the tap's input, after every hook that might change it."""
    module, place = tap.input.module, tap.input.which
    if place == "output":

        def keep(module: nn.Module, args: tuple, output: Tensor) -> None:
            receive(output)

        handle = module.register_forward_hook(keep)
        yield handle
        # Hooks that the user adds later run later: before each call ours moves behind them.
        hooks = cast(OrderedDict, module._forward_hooks)
        yield module.register_forward_pre_hook(lambda *_: hooks.move_to_end(handle.id))
        return

    def watch(forward: Callable, *args: Any, **kwargs: Any) -> Any:
        tensor = argument(args, kwargs, place)
        if tensor is not None:
            receive(tensor)
        return forward(*args, **kwargs)

    yield WithinForward(module, watch)


def transposed(function: Callable[[Tensor], Tensor], probe: Tensor) -> Tensor:
    """The gradient of a function that is linear in `probe`, with a graph to whatever else it is computed from.

    By torch.func, which can itself be mapped and differentiated forward; it takes no saved-tensor hooks, and under these no
    other transform of torch.func is about.
    """
    if not has_saved_tensor_hooks():
        value, pull, *_ = torch.func.vjp(function, probe)
        return pull(torch.ones_like(value))[0]
    has_graph = torch.is_grad_enabled()
    with saved_as_they_are(), torch.enable_grad():
        probe.requires_grad_()
        gradient = torch.autograd.grad(function(probe), probe, create_graph=True)[0]
    return gradient if has_graph else gradient.detach()
