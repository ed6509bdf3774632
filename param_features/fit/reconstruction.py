"""How well a handful of features rebuilds each gradient, from coordinates alone."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients import sparse_product


def square_errors(
    coords: Float[Tensor, "sample feature"],
    overlaps: Float[Tensor, "sample feature"],
    gram: Float[Tensor, "feature feature"],
    square_norm: Float[Tensor, " sample"],
    *,
    is_sparse: bool = False,
) -> Float[Tensor, " sample"]:
    """‖∇ − Σ_k c_k v_k‖² = ‖∇‖² − 2 Σ_k c_k ⟨∇, v_k⟩ + cᵀ Gram c; the reconstruction is never built.

    Args:
        coords: c, zero where a feature is not kept.
        overlaps: ⟨∇, v_k⟩ with the rows of V_out; read only where `coords` is not zero.
        gram: ⟨v_j, v_k⟩.
        square_norm: ‖∇‖².
        is_sparse: Whether to leave the zeros of `coords` out of the product with the Gram matrix.
    """
    fixed = coords.detach()
    through = times(fixed, gram, is_sparse=is_sparse)
    square = (through * (2 * coords - fixed)).sum(1)  # cᵀ Gram c, and with its gradient 2 Gram c, without a second product
    return square_norm - 2 * (coords * overlaps).sum(1) + square


def times(
    coords: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], *, is_sparse: bool
) -> Float[Tensor, "sample feature"]:
    """`coords @ gram` with constant coordinates, differentiable in the Gram matrix."""
    return sparse_product(coords, gram) if is_sparse else coords @ gram


def reconstruction_error(errors: Float[Tensor, " sample"], square_norm: Float[Tensor, " sample"]) -> float:
    """Σ‖∇ − reconstruction‖² / Σ‖∇‖²: 0 is perfect, 1 is no better than predicting nothing."""
    return float(errors.double().sum().clamp(min=0) / square_norm.double().sum().clamp(min=torch.finfo(torch.float64).tiny))
