"""From overlaps with V_in to activations: taken as they are, or by pursuit."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.decompose.pursuit import pursue
from param_features.decompose.selection import batch_top_k, threshold_for


@dataclass(frozen=True)
class Encoder:
    """How a sample's activations follow from V_in ∇.

    Attributes:
        n_rounds: How many features pursuit may take for a sample; None where activations are V_in ∇ itself.
    """

    n_rounds: int | None = None

    @torch.no_grad()
    def kept(
        self, overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], l0: float
    ) -> tuple[Float[Tensor, "sample feature"], float]:
        """The coordinates that enter the reconstruction, l0 per sample on average, and the threshold that keeps as many.

        Args:
            overlaps: V_in ∇, in divergence units per unit step.
            gram: ⟨v_j, v_k⟩ of V_out.
            l0: Mean over all given samples.

        Returns:
            Coordinates, zero where a feature is not kept; and the threshold.
        """
        if self.n_rounds is None:
            return overlaps * batch_top_k(overlaps, l0), threshold_for(overlaps, l0)
        path = pursue(overlaps, gram, self.n_rounds)
        threshold = path.threshold(l0)
        return path.coords(threshold), threshold

    @torch.no_grad()
    def activations(
        self, overlaps: Float[Tensor, "*sample feature"], gram: Float[Tensor, "feature feature"], threshold: float
    ) -> Float[Tensor, "*sample feature"]:
        """Every feature's activation: by pursuit, zero for those that are not taken at the threshold."""
        if self.n_rounds is None:
            return overlaps
        flat = overlaps.reshape(-1, overlaps.shape[-1])
        return pursue(flat, gram.to(flat), self.n_rounds).coords(threshold).reshape(overlaps.shape)

    def active(
        self, overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], threshold: float
    ) -> Bool[Tensor, "sample feature"]:
        """Which features a sample keeps at a fixed threshold."""
        if self.n_rounds is None:
            return overlaps.abs() >= threshold
        return self.activations(overlaps, gram, threshold) != 0


LINEAR = Encoder()
"""Activations are V_in ∇."""
