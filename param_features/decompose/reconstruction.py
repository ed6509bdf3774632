"""How well a handful of features rebuilds each gradient, from coordinates alone."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


def square_errors(
    coords: Float[Tensor, "sample feature"],
    overlaps: Float[Tensor, "sample feature"],
    gram: Float[Tensor, "feature feature"],
    square_norm: Float[Tensor, " sample"],
) -> Float[Tensor, " sample"]:
    """‖∇ − Σ_k c_k v_k‖² = ‖∇‖² − 2 Σ_k c_k ⟨∇, v_k⟩ + cᵀ Gram c; the reconstruction is never built.

    Args:
        coords: c, zero where a feature is not kept.
        overlaps: ⟨∇, v_k⟩ with the rows of V_out.
        gram: ⟨v_j, v_k⟩.
        square_norm: ‖∇‖².
    """
    return square_norm - 2 * (coords * overlaps).sum(1) + einsum(coords @ gram, coords, "s f, s f -> s")


def reconstruction_error(errors: Float[Tensor, " sample"], square_norm: Float[Tensor, " sample"]) -> float:
    """Σ‖∇ − reconstruction‖² / Σ‖∇‖²: 0 is perfect, 1 is no better than predicting nothing."""
    return float(errors.double().sum() / square_norm.double().sum().clamp(min=torch.finfo(torch.float64).tiny))
