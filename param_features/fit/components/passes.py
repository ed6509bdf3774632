"""Passes of a model with its components masked: an addition at each layer's output, the weights as they are."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.errors import AdapterError
from param_features.fit.components.parts import Parts
from param_features.fit.components.places import encoders_own, real_positions
from param_features.gradients import Applied, GradientEngine, MatrixSite, acting_on, at_least_float32, check_finite_output
from param_features.params import held_still
from param_features.problem import ModelInputs


@dataclass(frozen=True, eq=False)
class Masks:
    """How much of each component, and of Δ, stays on at every position of some rows.

    Attributes:
        components: In [0, 1], by site; a site that is left out stays whole.
        remainders: The same of Δ, which stays whole where it is left out.
    """

    components: Mapping[str, Float[Tensor, "row _pos _component"]]
    remainders: Mapping[str, Float[Tensor, "row _pos"]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CleanPass:
    """What a pass without masks gives.

    Attributes:
        output: Of every sample, in float32 at least.
        applied: What each matrix is applied to.
        real: Which of each matrix's positions are no padding; None for all.
        aligned: The matrices whose positions are those of the outputs.
    """

    output: Float[Tensor, "sample d_output"]
    applied: dict[str, Applied]
    real: dict[str, Bool[Tensor, "row _pos"] | None]
    aligned: frozenset[str]


@dataclass(frozen=True, eq=False)
class _Masked:
    """What a pass under masks is run with."""

    parts: Mapping[str, Parts]
    masks: Masks
    remainders: Mapping[str, Tensor]
    n_rows: int


class MaskedModel:
    """A model whose matrices may be masked, pass by pass; it is held still and acted on within `held`."""

    def __init__(self, engine: GradientEngine, sites: list[MatrixSite]) -> None:
        """Nothing is hooked yet."""
        self.engine, self.sites = engine, sites
        self._applied: dict[str, Applied] | None = None
        self._masked: _Masked | None = None
        self._n_rows = 0
        self._of_encoder: dict[tuple[int, ...], frozenset[str]] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the block the model's sites are acted on; errors are those of `held_still`."""
        with held_still(self.engine.adapter.module), acting_on(self.sites, self._act):
            try:
                yield
            finally:
                self._masked = None

    def clean(self, inputs: ModelInputs) -> CleanPass:
        """Run rows as they are. Cost: a forward pass.

        Raises:
            AdapterError: A matrix is not applied exactly once; or which of its positions are padding is not known.
            NonFiniteError: The output holds NaN or infinity.
        """
        output, applied = self._recorded(inputs)
        missing = [site.name for site in self.sites if site.name not in applied]
        if missing:
            raise AdapterError(_not_once(missing[0], 0))
        widths = {name: values.shape[1] for name, values in applied.items()}
        shape = tuple(widths.values())
        if shape not in self._of_encoder:
            self._of_encoder[shape] = encoders_own(inputs, widths, self._widths)
        of_encoder = self._of_encoder[shape]
        real = real_positions(self.engine, inputs, widths, of_encoder)
        real = {name: None if mask is None else mask.to(applied[name].device) for name, mask in real.items()}
        has_samples = self.engine.per_position
        aligned = {name for name, width in widths.items() if has_samples and width == inputs.n_pos} - of_encoder
        return CleanPass(check_finite_output(output), applied, real, frozenset(aligned))

    def _recorded(self, inputs: ModelInputs) -> tuple[Tensor, dict[str, Applied]]:
        self._applied, self._masked, self._n_rows = {}, None, len(inputs)
        try:
            with torch.no_grad():
                return self._output(inputs), self._applied
        finally:
            self._applied = None

    def _widths(self, inputs: ModelInputs) -> dict[str, int]:
        return {name: values.shape[1] for name, values in self._recorded(inputs)[1].items()}

    def masked(
        self,
        inputs: ModelInputs,
        parts: Mapping[str, Parts],
        masks: Masks,
        remainders: Mapping[str, Float[Tensor, "_d_out _d_in"]] | None = None,
    ) -> Float[Tensor, "sample d_output"]:
        """Run rows under masks, one set for each row. Cost: a forward pass, and two small products a site.

        Where the inputs mark targets, Δ stays whole everywhere else, whatever its mask: with components on there too, each
        bit of the model's own output.

        Args:
            inputs: The rows.
            parts: The components by site.
            masks: Of these rows.
            remainders: Δ by site; needed where `masks` has some of it.
        """
        masked = _Masked(parts, _at_targets(masks, inputs.targets), remainders or {}, len(inputs))
        self._masked = masked
        try:
            output = self._output(inputs)
        finally:
            self._masked = None
        if output.requires_grad:  # layers that are checkpointed run again in the backward pass
            output.register_hook(lambda _: setattr(self, "_masked", masked))
        return output

    def _output(self, inputs: ModelInputs) -> Float[Tensor, "sample d_output"]:
        output = at_least_float32(self.engine.adapter.run(*inputs.args, **inputs.kwargs))
        if not self.engine.per_position:
            return output.flatten(1)
        is_sample = inputs.sample_mask
        return output.flatten(0, 1) if is_sample is None else output[is_sample.to(output.device)]

    def _act(self, site: MatrixSite, source: Tensor, output: Tensor) -> Tensor:
        if self._applied is not None:
            if site.name in self._applied:
                raise AdapterError(_not_once(site.name, 2))
            self._applied[site.name] = site.applied(source, output, self._n_rows).detach()
            return output
        if self._masked is None:
            return output
        masks, n_rows = self._masked.masks, self._masked.n_rows
        if site.name not in masks.components:
            return output
        applied = site.applied(source, output, n_rows)
        change = self._masked.parts[site.name].change(
            applied, masks.components[site.name], self._masked.remainders.get(site.name), masks.remainders.get(site.name)
        )
        return site.added(change, source, output, n_rows)


def not_applied_once(engine: GradientEngine, sites: list[MatrixSite], inputs: ModelInputs) -> dict[str, str]:
    """The sites that a pass does not apply exactly once as a matrix, each with the reason. Cost: a forward pass."""
    n_calls, found = dict.fromkeys((site.name for site in sites), 0), {}

    def act(site: MatrixSite, source: Tensor, output: Tensor) -> Tensor:
        n_calls[site.name] += 1
        try:
            site.applied(source, output, len(inputs))
        except AdapterError as error:
            found[site.name] = str(error)
        return output

    with held_still(engine.adapter.module), acting_on(sites, act), torch.no_grad():
        engine.adapter.run(*inputs.args, **inputs.kwargs)
    return {name: _not_once(name, n) for name, n in n_calls.items() if n != 1} | found


def _not_once(name: str, n: int) -> str:
    if not n:
        return f"{name!r} is not applied in this model's pass. Choose other parameters."
    return (
        f"{name!r} is applied more than once in a pass, and components have one importance at each position. Choose other "
        "parameters."
    )


def repeated(inputs: ModelInputs, n: int) -> ModelInputs:
    """Rows n times, one set after the other."""
    return inputs if n == 1 else inputs.map(lambda tensor: torch.cat([tensor] * n))


def _at_targets(masks: Masks, targets: Bool[Tensor, "row target_pos"] | None) -> Masks:
    """The masks with Δ whole outside of targets; sites with positions of their own go by the row."""
    if targets is None:
        return masks
    whole = {}
    for name, mask in masks.remainders.items():
        here = targets if targets.shape == mask.shape else targets.any(1, keepdim=True)
        whole[name] = torch.where(here.to(mask.device), mask, torch.ones((), dtype=mask.dtype, device=mask.device))
    return Masks(masks.components, whole)
