"""The rows of one step, of which each process has its part, and what is counted over all of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.fit.components.passes import CleanPass
from param_features.machine import Share
from param_features.problem import ModelInputs


@dataclass(frozen=True, eq=False)
class StepBatch:
    """One batch; sums over this process's rows, over the counts of all, add up to means over the batch.

    Attributes:
        inputs: This process's rows.
        share: Which of all rows they are.
        real: Which of each site's positions are no padding, in these rows; None for all.
        n_samples: How many samples all rows have.
        n_real: How many positions that are no padding, by site.
    """

    inputs: ModelInputs
    share: Share
    real: Mapping[str, Bool[Tensor, "row _pos"] | None]
    n_samples: int
    n_real: Mapping[str, int]

    @classmethod
    def of(cls, inputs: ModelInputs, share: Share, clean: CleanPass) -> "StepBatch":
        """Count what this process's rows have, and add the others' up."""
        own = [
            clean.applied[name].shape[0] * clean.applied[name].shape[1] if real is None else int(real.sum())
            for name, real in clean.real.items()
        ]
        counts = torch.tensor([len(clean.output), *own])
        share.sum_([counts])
        n_samples, *n_real = counts.tolist()
        return cls(inputs, share, clean.real, n_samples, dict(zip(clean.real, n_real, strict=True)))

    def part(self, sources: Mapping[str, Float[Tensor, "row _pos _source"]]) -> dict[str, Tensor]:
        """This process's rows of what was drawn for all; what is the same for all rows stays as it is."""
        n = self.share.n_items
        return {name: self.share.of(source) if len(source) == n else source for name, source in sources.items()}

    def over_real(self, name: str, values: Float[Tensor, "row pos ..."]) -> Float[Tensor, "position ..."]:
        """A site's values at this process's positions that are no padding."""
        real = self.real[name]
        return values.flatten(0, 1) if real is None else values[real]

    def total(self, sums: Float[Tensor, " component"]) -> Float[Tensor, " component"]:
        """Sums over all rows from those over this process's, whose gradient alone flows."""
        if self.share.is_whole:
            return sums
        everywhere = sums.detach().clone()
        self.share.sum_([everywhere])
        return sums + (everywhere - sums.detach())
