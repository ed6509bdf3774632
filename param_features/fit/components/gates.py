"""From what an importance network gives to importances in [0, 1], and to masks."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

_LEAK = 0.01


class _Lower(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)  # type: ignore[attr-defined]
        return z.clamp(0, 1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (z,) = ctx.saved_tensors  # type: ignore[attr-defined]
        leaked = torch.where((z <= 0) & (gradient < 0), _LEAK * gradient, torch.zeros_like(gradient))
        return torch.where((z > 0) & (z < 1), gradient, leaked)


def importances_for_masks(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clamp to [0, 1]. The gradient leaks, by a hundredth, below 0 where it would raise the importance.

    Without the leak components die; with it wherever z is below 0, masks fall without end. Source: SPD (arXiv 2506.20790),
    appendix on leaky hard sigmoids; VPD for the sign.
    """
    return _Lower.apply(z)  # type: ignore[return-value]


def importances_for_penalties(z: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Clamp below at 0, and above 1 to a slope of a hundredth, so that importances come back from there."""
    return torch.where(z > 1, 1 + _LEAK * (z - 1), z.clamp(min=0))


def masks_of(importance: Float[Tensor, "*shape"], source: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """M = g + (1 − g) r: anything between the importance and 1."""
    return torch.lerp(importance, importance.new_ones(()), source)
