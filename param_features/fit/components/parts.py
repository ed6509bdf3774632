"""The components of one matrix: rank-1 parts U_c ⊗ V_c, and the remainder Δ with which they sum to W."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients import Applied


@dataclass(frozen=True, eq=False)
class Parts:
    """Components of one matrix W [d_out d_in]: Σ_c U_c ⊗ V_c + Δ = W.

    Attributes:
        U: What each component writes.
        V: What each component reads.
    """

    U: Float[Tensor, "component d_out"]
    V: Float[Tensor, "component d_in"]

    @property
    def n(self) -> int:
        """How many there are."""
        return len(self.U)

    def inner(self, applied: Applied) -> Float[Tensor, "row pos component"]:
        """Inner activations V_cᵀx at every position; of a table's index the column's entry."""
        return applied @ self.V.T if applied.is_floating_point() else self.V.T[applied]

    def sum(self) -> Float[Tensor, "d_out d_in"]:
        """Σ_c U_c ⊗ V_c."""
        return self.U.T @ self.V

    def remainder(self, weight: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
        """Δ."""
        return weight - self.sum()

    def change(
        self,
        applied: Applied,
        mask: Float[Tensor, "row pos component"],
        remainder: Float[Tensor, "d_out d_in"] | None = None,
        mask_of_remainder: Float[Tensor, "row pos"] | None = None,
    ) -> Float[Tensor, "row pos d_out"]:
        """What masks change of the output: U ((m − 1) ⊙ Vᵀx) + (m_Δ − 1) Δx; Δ stays whole where it has no mask."""
        change = ((mask - 1) * self.inner(applied)) @ self.U
        if remainder is None or mask_of_remainder is None:
            return change
        through = applied @ remainder.T if applied.is_floating_point() else remainder.T[applied]
        return change + (mask_of_remainder - 1).unsqueeze(-1) * through


def least_square_parts(weight: Float[Tensor, "d_out d_in"], V: Float[Tensor, "component d_in"]) -> Parts:
    """Components that read given directions and come closest to W, the U of least norm where there are several.

    Cost: a singular value decomposition of V.
    """
    U = (weight.double() @ torch.linalg.pinv(V.double())).T
    return Parts(U.to(V.dtype).contiguous(), V)
