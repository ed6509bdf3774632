"""Matrix products of the fit: differentiable in the directions alone, by a fast library, zeros left out on the way back.

A step reads the overlaps of a batch with all directions, and what comes back to them is mostly zero where few features are
kept: the backward product leaves these zeros out, direction by direction.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients.sparse import csr, is_fast_on

_MOSTLY_ZERO = 0.1
"""A row with a smaller share of entries goes through a sparse product backwards."""


def product(rows: Float[Tensor, "row d"], directions: Float[Tensor, "direction d"]) -> Float[Tensor, "row direction"]:
    """`rows @ directions.T` with constant rows; differentiable in `directions` alone.

    Cost: forwards, the dense product; backwards, of directions whose entries come back mostly as zeros what the others do.
    """
    return _Product.apply(rows, directions)  # type: ignore[return-value]


def matmul(rows: Float[Tensor, "row d"], directions: Float[Tensor, "direction d"]) -> Float[Tensor, "row direction"]:
    """`rows @ directions.T`, in float32 on a CPU by oneDNN: MKL leaves half of what other makers' processors have unused."""
    if _has_onednn(rows) and _has_onednn(directions):
        return torch.ops.mkldnn._linear_pointwise(rows, directions, None, "none", [], "")
    return rows @ directions.T


def _has_onednn(tensor: Tensor) -> bool:
    return (
        tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.numel() > 0
        and torch.backends.mkldnn.enabled
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


class _Product(torch.autograd.Function):
    """The gradient with respect to the directions is the transposed one of the entries times the rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, directions: Tensor) -> Tensor:
        """The dense product."""
        ctx.save_for_backward(rows)
        return matmul(rows, directions)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[None, Tensor]:
        """Directions that few rows speak to apart from the others."""
        (rows,), grad = ctx.saved_tensors, grads[0]
        if not is_fast_on(rows.device):
            return None, grad.T @ rows
        back = grad.T.contiguous()
        few = (back != 0).sum(1) < _MOSTLY_ZERO * len(rows)
        if not few.any():
            return None, matmul(back, rows.T)
        if few.all():
            return None, csr(back) @ rows
        gradient = rows.new_empty(len(back), rows.shape[1])
        gradient[few], gradient[~few] = csr(back[few]) @ rows, matmul(back[~few], rows.T)
        return None, gradient
