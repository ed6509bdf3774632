"""From overlaps to the few coordinates that rebuild a gradient: the largest ones, or by pursuit."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats.low_rank import LowRank
from param_features.fit.pursuit import pursue, pursued_threshold, threshold_numbers, triangle_numbers
from param_features.fit.selection import batch_top_k, threshold_for

_MOST_NUMBERS = 2**26
"""Triangles of so many numbers are kept between finding the threshold and the coordinates; beyond, pursuit runs twice."""

_PIECE = 4096
"""Samples whose coordinates at a fixed threshold are pursued at a time."""


@dataclass(frozen=True)
class Encoder:
    """How a sample's code, the coordinates that enter its reconstruction, follows from its gradient's overlaps.

    Attributes:
        n_rounds: How many features pursuit may take for a sample; None where the largest entries of V_in ∇ are the code.
    """

    n_rounds: int | None = None

    def reads(self, v_in: LowRank, v_out: LowRank) -> LowRank:
        """The directions whose overlaps with a gradient the code is made from: V_out by pursuit, V_in otherwise."""
        return v_in if self.n_rounds is None else v_out

    def is_twice(self, n_samples: int) -> bool:
        """Whether so many samples are pursued twice to find both the threshold and the coordinates, for want of memory."""
        return self.n_rounds is not None and n_samples * self.n_rounds**2 > _MOST_NUMBERS

    def code_numbers(self, n_samples: int, n_features: int) -> float:
        """Numbers that `kept` makes of so many samples: overlaps, coordinates and masks, and the triangles of pursuit."""
        products = 6 * n_samples * n_features
        if self.n_rounds is None:
            return products
        if not self.is_twice(n_samples):
            return products + triangle_numbers(n_samples, self.n_rounds)
        pieces = triangle_numbers(min(n_samples, _PIECE), self.n_rounds)
        return products + max(pieces, threshold_numbers(n_samples, self.n_rounds))

    @torch.no_grad()
    def kept(
        self, overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], l0: float
    ) -> tuple[Float[Tensor, "sample feature"], float]:
        """The coordinates that enter the reconstruction, l0 per sample on average, and the threshold that keeps as many.

        Args:
            overlaps: Of the gradients with the directions that the encoder reads, in divergence units per unit step.
            gram: ⟨v_j, v_k⟩ of V_out.
            l0: Mean over all given samples.

        Returns:
            Coordinates, zero where a feature is not kept; and the threshold.
        """
        if self.n_rounds is None:
            return overlaps * batch_top_k(overlaps, l0), threshold_for(overlaps, l0)
        if self.is_twice(len(overlaps)):
            threshold = pursued_threshold(overlaps, gram, self.n_rounds, l0)
            return self.codes(overlaps, gram, threshold), threshold
        path = pursue(overlaps, gram, self.n_rounds, l0=l0)
        threshold = path.threshold(l0)
        return path.coords(threshold), threshold

    @torch.no_grad()
    def codes(
        self, overlaps: Float[Tensor, "*sample feature"], gram: Float[Tensor, "feature feature"], threshold: float
    ) -> Float[Tensor, "*sample feature"]:
        """The coordinates kept at a fixed threshold, zero for the others."""
        if self.n_rounds is None:
            return overlaps * (overlaps.abs() >= threshold)
        flat = overlaps.reshape(-1, overlaps.shape[-1])
        parts = [
            pursue(part, gram.to(flat), self.n_rounds, least=threshold).coords(threshold) for part in flat.split(_PIECE)
        ]
        return torch.cat(parts).reshape(overlaps.shape)


LINEAR = Encoder()
"""The largest activations are the code."""
