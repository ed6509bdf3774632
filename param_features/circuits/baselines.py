"""What an ablated node is replaced by: nothing, its mean part, or its part on another prompt."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.circuits.places import Place, mean_inner, mean_written

ABLATIONS = ("mean", "zero", "resample")
"""The ways of ablation by name."""


class Baseline(ABC):
    """What stands in for a node where it is ablated: its part b_k."""

    def on(self, is_real: Bool[Tensor, "row pos"] | None) -> "Baseline":
        """The baseline on other inputs, given their real positions; itself where these play no part."""
        return self

    @abstractmethod
    def inner(self, place: Place, call_number: int, delta: Tensor, n_rows: int) -> Tensor | float:
        """⟨δ, b_k⟩ summed over each row's positions, [row node]."""

    @abstractmethod
    def written(self, place: Place, call_number: int, amounts: Float[Tensor, "row node"], like: Tensor) -> Tensor | float:
        """Σ_k α_k b_k as a tensor like the output."""


class Zero(Baseline):
    """The baseline of nothing: the weight without the node."""

    def inner(self, place: Place, call_number: int, delta: Tensor, n_rows: int) -> float:
        """Zero, whatever is given."""
        return 0.0

    def written(self, place: Place, call_number: int, amounts: Float[Tensor, "row node"], like: Tensor) -> float:
        """Zero, whatever is given."""
        return 0.0


@dataclass(frozen=True, eq=False)
class Mean(Baseline):
    """The baseline of the node's mean over real positions of other text, which is the same everywhere.

    Attributes:
        means: Each place's nodes' mean parts, [node unit].
        is_real: False at padding of the prompts; None in a model without tokens.
    """

    means: Mapping[Place, Float[Tensor, "node unit"]]
    is_real: Tensor | None

    def on(self, is_real: Bool[Tensor, "row pos"] | None) -> "Mean":
        """The baseline with the same means at other positions."""
        return Mean(self.means, is_real)

    def inner(self, place: Place, call_number: int, delta: Tensor, n_rows: int) -> Tensor:
        """See `Baseline`."""
        return mean_inner(delta, self.means[place], n_rows, self.is_real)

    def written(self, place: Place, call_number: int, amounts: Float[Tensor, "row node"], like: Tensor) -> Tensor:
        """See `Baseline`."""
        return mean_written(amounts, self.means[place], like, self.is_real)


@dataclass(frozen=True, eq=False)
class Resample(Baseline):
    """The baseline of what the node gives at the same position of another prompt.

    Attributes:
        sources: On the other prompts, by place and call.
    """

    sources: Mapping[tuple[Place, int], Any]

    def inner(self, place: Place, call_number: int, delta: Tensor, n_rows: int) -> Tensor:
        """See `Baseline`."""
        return place.inner(self.sources[place, call_number], delta, n_rows)

    def written(self, place: Place, call_number: int, amounts: Float[Tensor, "row node"], like: Tensor) -> Tensor:
        """See `Baseline`."""
        return place.written(self.sources[place, call_number], amounts, like).detach()


def other_rows(n_rows: int, generator: torch.Generator, lengths: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
    """Draw another row for each row, at random among those that are as long; itself where none is."""
    others = torch.arange(n_rows)
    for length in lengths.unique():
        rows = (lengths == length).nonzero().flatten()
        order = rows[torch.randperm(len(rows), generator=generator)]
        others[order] = order.roll(1)
    return others
