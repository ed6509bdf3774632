"""Networks that say, from the clean activations, how much of each component an input needs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from param_features.fit.components.settings import ComponentSettings
from param_features.gradients import Applied

ByName = Mapping[str, Float[Tensor, "row _pos _component"]]
_SHAPES = Mapping[str, tuple[int, int]]
"""Of each site: its number of components, and d_in."""


@dataclass(frozen=True, eq=False)
class Starting:
    """From where on a matrix's components begin with importance 1; below, it is in proportion.

    Attributes:
        V: What its components read.
        at: Sizes of the inner activations; infinite for components that write nothing.
        root_mean_square: Of the matrix's input; 1 for a table.
    """

    V: Float[Tensor, "component d_in"]
    at: Float[Tensor, " component"]
    root_mean_square: float


_STEEP = 4.0
"""(GELU(a) + GELU(−a)) / |a| is above 0.95 from |a| = 2 on."""


class ImportanceNet(nn.Module, ABC):
    """Gives each component's z at every position; `gates` makes importances of it.

    Attributes:
        kind: Its name in settings and files.
        hidden: Its width.
    """

    kind: ClassVar[str]
    hidden: int

    def begin(self, thresholds: Mapping[str, Starting]) -> None:
        """Begin with importances that grow with the size of inner activations, where the network can read these."""

    @abstractmethod
    def forward(self, inner: ByName, applied: Mapping[str, Applied]) -> dict[str, Float[Tensor, "row _pos _component"]]:
        """From inner activations and what matrices are applied to, by site."""


class _BySite(ImportanceNet):
    """Four tensors for each matrix: what reads, its shift, what follows, its bias."""

    weights: nn.ParameterList

    def _of_site(self, place: int) -> list[Tensor]:
        return list(self.weights[4 * place : 4 * place + 4])


class PerComponent(_BySite):
    """A network for each component on its own inner activation."""

    kind = "component"

    def __init__(
        self, shapes: _SHAPES, hidden: int, generator: torch.Generator | None, tables: frozenset[str] = frozenset()
    ) -> None:
        """Start with importances near 1; a network on a number has no need to know of `tables`."""
        super().__init__()
        self.hidden = hidden
        self.weights = nn.ParameterList()
        for n, _ in shapes.values():
            first = _drawn(n, hidden, generator=generator)
            second = _drawn(n, hidden, generator=generator, over=hidden**0.5)
            shift = torch.zeros(n, hidden) if generator is not None else first
            for tensor in (first, shift, second, torch.ones(n)):
                self.weights.append(nn.Parameter(tensor))

    @torch.no_grad()
    def begin(self, thresholds: Mapping[str, Starting]) -> None:
        """Two hidden units of each component make z = |V_cᵀx| over the threshold; the others add nothing yet."""
        for place, starting in enumerate(thresholds.values()):
            first, _, second, bias = self._of_site(place)
            second[:, 2:].mul_(0.1)
            first[:, 0], first[:, 1] = _STEEP / starting.at, -_STEEP / starting.at
            second[:, :2] = 1 / _STEEP
            bias.zero_()

    def forward(self, inner: ByName, applied: Mapping[str, Applied]) -> dict[str, Tensor]:
        """z_c = w₂·GELU(w₁ V_cᵀx + b₁) + b₂. Cost: row · pos · component · hidden."""
        found = {}
        for place, (name, values) in enumerate(inner.items()):
            first, shift, second, bias = self._of_site(place)
            found[name] = (functional.gelu(values.unsqueeze(-1) * first + shift) * second).sum(-1) + bias
        return found


class PerSite(_BySite):
    """A network for each matrix, shared by its components, on the matrix's input."""

    kind = "site"

    def __init__(
        self, shapes: _SHAPES, hidden: int, generator: torch.Generator | None, tables: frozenset[str] = frozenset()
    ) -> None:
        """Start with importances near 1; `tables` are the sites that read indices."""
        super().__init__()
        self.hidden = hidden
        self.weights = nn.ParameterList()
        for name, (n, d_in) in shapes.items():
            scale = 1.0 if name in tables else d_in**-0.5
            first = _drawn(d_in, hidden, generator=generator, factor=scale)
            second = _drawn(hidden, n, generator=generator, over=hidden**0.5)
            for tensor in (first, torch.zeros(hidden), second, torch.ones(n)):
                self.weights.append(nn.Parameter(tensor))

    @torch.no_grad()
    def begin(self, thresholds: Mapping[str, Starting]) -> None:
        """As for `PerComponent`, for as many components as half of the hidden units, at inputs of the usual size."""
        for place, starting in enumerate(thresholds.values()):
            first, _, second, bias = self._of_site(place)
            n = min(len(starting.V), self.hidden // 2)
            scale = _STEEP * starting.root_mean_square / starting.at[:n]
            reading = (starting.V[:n] * scale.unsqueeze(1)).T
            second.mul_(0.1)
            first[:, :n], first[:, n : 2 * n] = reading, -reading
            second[: 2 * n] = 0
            for half in (slice(0, n), slice(n, 2 * n)):
                second[half, :n] = torch.eye(n).to(second) / _STEEP
            bias.zero_()

    def forward(self, inner: ByName, applied: Mapping[str, Applied]) -> dict[str, Tensor]:
        """Z = W₂ GELU(W₁ x̂ + b₁) + b₂, x̂ the input over its root mean square; a table's index chooses a row of W₁."""
        found = {}
        for place, name in enumerate(inner):
            first, shift, second, bias = self._of_site(place)
            found[name] = functional.gelu(read(applied[name], first) + shift) @ second + bias
        return found


class ForModel(ImportanceNet):
    """One network for the components of all matrices, on the inputs of all of them at the same position."""

    kind = "model"

    def __init__(
        self, shapes: _SHAPES, hidden: int, generator: torch.Generator | None, tables: frozenset[str] = frozenset()
    ) -> None:
        """Start with importances near 1; `tables` are the sites that read indices."""
        super().__init__()
        self.hidden = hidden
        self.sizes = [n for n, _ in shapes.values()]
        d_all = sum(1 if name in tables else d_in for name, (_, d_in) in shapes.items())
        firsts = [
            _drawn(d_in, hidden, generator=generator, factor=1.0 if name in tables else d_all**-0.5)
            for name, (_, d_in) in shapes.items()
        ]
        second = _drawn(hidden, hidden, generator=generator, over=hidden**0.5)
        third = _drawn(hidden, sum(self.sizes), generator=generator, over=hidden**0.5)
        self.firsts = nn.ParameterList(map(nn.Parameter, firsts))
        rest = (torch.zeros(hidden), second, torch.zeros(hidden), third, torch.ones(sum(self.sizes)))
        self.rest = nn.ParameterList(map(nn.Parameter, rest))

    def forward(self, inner: ByName, applied: Mapping[str, Applied]) -> dict[str, Tensor]:
        """Z = W₃ GELU(W₂ GELU(Σ_site W₁ x̂ + b₁) + b₂) + b₃."""
        shift, second, further, third, bias = self.rest
        states = sum(read(applied[name], first) for name, first in zip(inner, self.firsts, strict=True))
        hidden = functional.gelu(functional.gelu(states + shift) @ second + further)
        return dict(zip(inner, (hidden @ third + bias).split(self.sizes, -1), strict=True))


NETWORKS: dict[str, Callable[[_SHAPES, int, torch.Generator | None, frozenset[str]], ImportanceNet]] = {
    kind.kind: kind for kind in (PerComponent, PerSite, ForModel)
}
"""By name: from shapes, width, generator and the sites that read indices."""


def network_size(settings: ComponentSettings, shapes: _SHAPES) -> tuple[str, int]:
    """Kind and width of the network that the settings ask for, or that the shapes choose.

    A network for each matrix sees what tells neighbouring components apart, which an inner activation alone does not.

    Args:
        settings: Which may leave both open.
        shapes: Of each site: its number of components, and d_in.
    """
    kind = "site" if settings.importance == "auto" else settings.importance
    reading = max(max(4 * d_in, 2 * n) for n, d_in in shapes.values())
    return kind, settings.hidden or (16 if kind == "component" else min(1024, reading))


def network_shaped(kind: str, shapes: _SHAPES, hidden: int) -> ImportanceNet:
    """A network whose tensors have shapes and no numbers yet: those of a file take their place. Takes next to no memory."""
    return NETWORKS[kind](shapes, hidden, None, frozenset())


def _drawn(*shape: int, generator: torch.Generator | None, factor: float = 1.0, over: float = 1.0) -> Tensor:
    """Normal numbers, times or over one; without a generator zeros that take the memory of a single one."""
    if generator is None:
        return torch.zeros((), dtype=torch.float32).expand(shape)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float32)
    return drawn * factor if over == 1 else drawn / over


def read(applied: Applied, first: Float[Tensor, "d_in hidden"]) -> Float[Tensor, "row pos hidden"]:
    """A first layer's product with the input over its root mean square, or the row that an index chooses."""
    if not applied.is_floating_point():
        return first[applied]
    return functional.rms_norm(applied, applied.shape[-1:]) @ first
