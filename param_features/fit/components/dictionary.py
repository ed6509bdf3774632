"""Components as what a fit finds: parts of every matrix, and the network that says where they are needed."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NoReturn

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.fit.components.gates import importances_for_masks
from param_features.fit.components.importance import ImportanceNet
from param_features.fit.components.parts import Parts
from param_features.fit.components.passes import MaskedModel
from param_features.fit.dictionary import Dictionary, Part, Readings
from param_features.fit.formats.low_rank import LowRank
from param_features.fit.reading import Route
from param_features.gradients import GradientEngine, sites_of
from param_features.problem import Divergence, ModelInputs, Question

_TIES = 1e-6
_POSITIONS = 2**14
"""Positions that are read together."""


@dataclass(frozen=True, eq=False)
class ComponentDictionary(Dictionary):
    """The components of some matrices, numbered through, site by site.

    An activation is an importance, and so is a code: a component counts where its importance is above 0. A direction is a
    component at unit norm.

    Attributes:
        parts: U and V of each site.
        net: Gives importances.
    """

    parts: Mapping[str, Parts]
    net: ImportanceNet
    kind = "components"
    threshold = 0.0

    @property
    def n_features(self) -> int:
        """How many components there are."""
        return sum(parts.n for parts in self.parts.values())

    @property
    def sites(self) -> list[str]:
        """The name of each component's matrix."""
        return [name for name, parts in self.parts.items() for _ in range(parts.n)]

    @property
    def v_in(self) -> LowRank:  # type: ignore[override]
        """The directions too: what a step along a component does to the divergence is read along the component itself."""
        return self.v_out

    @cached_property
    def sizes(self) -> Float[Tensor, " component"]:  # type: ignore[override]
        """‖U_c‖ ‖V_c‖: how far a component lies along its direction."""
        norms = [(parts.U.double().norm(dim=1) * parts.V.double().norm(dim=1)).cpu() for parts in self.parts.values()]
        return torch.cat(norms)

    @cached_property
    def v_out(self) -> LowRank:  # type: ignore[override]
        """Each component at unit norm, zero in all matrices but its own. Cost: components · Σ (d_out + d_in) numbers."""
        factors, start = {}, 0
        for name, parts in self.parts.items():
            U, V = (torch.nn.functional.normalize(side, dim=1) for side in (parts.U, parts.V))
            whole = []
            for side in (U, V):
                padded = side.new_zeros(self.n_features, side.shape[1], 1)
                padded[start : start + parts.n, :, 0] = side
                whole.append(padded)
            factors[name] = (whole[0], whole[1])
            start += parts.n
        return LowRank(factors)

    @torch.no_grad()
    def by_site(
        self, engine: GradientEngine, inputs: ModelInputs
    ) -> tuple[dict[str, Float[Tensor, "row _pos _component"]], dict[str, Float[Tensor, "row _pos _component"]]]:
        """Importances and inner activations at every position of each site, 0 at padding; on the CPU.

        Cost: a forward pass of the rows.
        """
        importances, inners, _ = self._read(engine, inputs)
        return importances, inners

    def _read(
        self, engine: GradientEngine, inputs: ModelInputs
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], frozenset[str]]:
        """What `by_site` gives, and the sites whose positions are those of the outputs."""
        model, aligned = MaskedModel(engine, sites_of(engine)), frozenset[str]()
        importances: dict[str, list[Tensor]] = {name: [] for name in self.parts}
        inners: dict[str, list[Tensor]] = {name: [] for name in self.parts}
        with model.held(), torch.no_grad():
            for rows in torch.arange(len(inputs)).split(max(1, _POSITIONS // inputs.n_pos)):
                clean = model.clean(inputs.rows(rows))
                aligned = clean.aligned
                inner = {name: parts.inner(clean.applied[name]) for name, parts in self.parts.items()}
                for name, z in self.net(inner, clean.applied).items():
                    importances[name].append(without_padding(importances_for_masks(z), clean.real[name]).cpu())
                    inners[name].append(without_padding(inner[name], clean.real[name]).cpu())
        join = lambda found: {name: torch.cat(each) for name, each in found.items()}  # noqa: E731
        return join(importances), join(inners), aligned

    def unit(self, divergence: Divergence) -> str:
        """An activation is an importance, from 0 to 1."""
        return "importance"

    def measured(self, divergence: Divergence) -> str:
        """See `Dictionary`."""
        return "importance, 0 to 1"

    def read(self, engine: GradientEngine, question: Question, inputs: ModelInputs) -> Readings:
        """Importances as activations and codes, inner activations as overlaps, of every sample.

        Where a sample is an input, or a site has other positions than the output, a sample has the largest of the site's.
        """
        *found, aligned = self._read(engine, inputs)
        importances, inners = (self._of_samples(engine, inputs, values, aligned) for values in found)
        is_real = self._is_real(engine, inputs)
        if is_real is None:
            is_real = torch.ones(importances.shape[:-1], dtype=torch.bool)
        else:
            importances, inners = (torch.where(is_real.unsqueeze(-1), found, 0.0) for found in (importances, inners))
        return Readings(importances, inners, importances, is_real)

    def activations(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs, *, route: Route = "auto"
    ) -> Float[Tensor, "*sample component"]:
        """Importances. Cost: a forward pass of the rows.

        Raises:
            SettingError: A `route` is given: there are no gradients.
        """
        if route != "auto":
            self.of_gradients(f"route={route!r} chooses how gradients are read", "Leave it out.")
        return self.read(engine, question, inputs).activations

    def sample_codes(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample component"]:
        """Importances."""
        return self.read(engine, question, inputs).codes

    def activation_parts(
        self, engine: GradientEngine, question: Question, inputs: ModelInputs
    ) -> Float[Tensor, "*sample param component"]:
        """A component's importance at its own matrix, 0 at the others."""
        names = list(self.parts)
        is_own = torch.tensor([[name == site for site in self.sites] for name in names])
        return self.activations(engine, question, inputs).unsqueeze(-2) * is_own

    def strengths(self, readings: Readings) -> Float[Tensor, "*sample component"]:
        """Importances; equal ones, as many that are 1, by the size of the inner activation."""
        size = readings.overlaps.double().abs()
        return readings.activations.double() * (1 + _TIES * size / size.max().clamp(min=1e-30))

    def with_random(self, generator: torch.Generator) -> "ComponentDictionary":
        """Random parts of the same matrices, each of the length of the component in whose place it stands."""

        def drawn(like: Tensor) -> Tensor:
            rows = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
            return torch.nn.functional.normalize(rows, dim=1) * like.norm(dim=1, keepdim=True)

        return replace(self, parts={name: Parts(drawn(parts.U), drawn(parts.V)) for name, parts in self.parts.items()})

    def part_of(self, feature: int) -> Part:
        """See `Dictionary`."""
        for name, parts in self.parts.items():
            if feature < parts.n:
                return Part(name, feature, parts.U[feature].clone(), parts.V[feature].clone())
            feature -= parts.n
        raise IndexError(feature)

    def of_gradients(self, what: str, instead: str) -> NoReturn:
        """Refuse.

        Raises:
            SettingError: Always.
        """
        raise SettingError(f"{what}, and components are read from activations, not from gradients. {instead}")

    def _is_real(self, engine: GradientEngine, inputs: ModelInputs) -> Bool[Tensor, "row pos"] | None:
        return None if inputs.sample_mask is None or not engine.per_position else inputs.sample_mask.cpu()

    def _of_samples(
        self,
        engine: GradientEngine,
        inputs: ModelInputs,
        found: Mapping[str, Float[Tensor, "row _pos _component"]],
        aligned: frozenset[str],
    ) -> Float[Tensor, "*sample component"]:
        columns = []
        for name, values in found.items():
            if not engine.per_position:
                columns.append(_largest(values))
            elif name in aligned:
                columns.append(values)
            else:
                columns.append(_largest(values).unsqueeze(1).expand(-1, inputs.n_pos, -1))
        return torch.cat(columns, -1)

    def placed(self, names: Mapping[str, str], devices: Mapping[str, torch.device]) -> "ComponentDictionary":
        """See `Dictionary`. The network lies where the first matrix does."""
        renamed = {names[name]: parts for name, parts in self.parts.items()}
        parts = {name: Parts(parts.U.to(devices[name]), parts.V.to(devices[name])) for name, parts in renamed.items()}
        return ComponentDictionary(parts, deepcopy(self.net).to(devices[next(iter(parts))]))


def without_padding(
    values: Float[Tensor, "row pos component"], real: Bool[Tensor, "row pos"] | None
) -> Float[Tensor, "row pos component"]:
    """The values, 0 at padding."""
    return values if real is None else torch.where(real.unsqueeze(-1), values, 0.0)


def _largest(values: Float[Tensor, "row pos component"]) -> Float[Tensor, "row component"]:
    """Of each row's positions the value of largest size, with its sign."""
    return values.gather(1, values.abs().argmax(1, keepdim=True))[:, 0]
