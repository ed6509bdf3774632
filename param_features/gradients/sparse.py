"""Products of which few entries are wanted, or whose left factor is mostly zero: a step costs what the kept features do."""

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def is_fast_on(device: torch.device) -> bool:
    """Whether torch has these products there; elsewhere the dense ones serve."""
    return device.type == "cuda" or (device.type == "cpu" and torch.backends.mkl.is_available())


def sampled_product(
    rows: Float[Tensor, "sample d"], directions: Float[Tensor, "feature d"], kept: Bool[Tensor, "sample feature"]
) -> Float[Tensor, "sample feature"]:
    """`rows @ directions.T` where `kept`, zero elsewhere; differentiable in `directions` alone.

    Cost: proportional to the entries kept, forwards and backwards; the dense product is not built.
    """
    return _SampledProduct.apply(rows, directions, kept)  # type: ignore[return-value]


def sparse_product(
    coords: Float[Tensor, "sample feature"], matrix: Float[Tensor, "feature other"]
) -> Float[Tensor, "sample other"]:
    """`coords @ matrix` with coordinates that are mostly zero; differentiable in the matrix alone.

    Cost: the columns of the matrix times the entries that are not zero, forwards and backwards.
    """
    return _SparseProduct.apply(coords, matrix)  # type: ignore[return-value]


class _SampledProduct(torch.autograd.Function):
    """The gradient with respect to the directions is a sparse matrix times the rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, directions: Tensor, kept: Tensor) -> Tensor:
        """One dot product for each entry kept."""
        ctx.save_for_backward(rows, kept)
        wanted = csr(kept.to(rows.dtype))
        return torch.sparse.sampled_addmm(wanted, rows, directions.T, beta=0).to_dense()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[None, Tensor, None]:
        """Sum the samples that kept each direction."""
        rows, kept = ctx.saved_tensors
        return None, csr((grads[0] * kept).T) @ rows, None


class _SparseProduct(torch.autograd.Function):
    """The gradient with respect to the matrix is the transposed coordinates times what came back."""

    @staticmethod
    def forward(ctx, coords: Tensor, matrix: Tensor) -> Tensor:
        """A sparse matrix times a dense one."""
        ctx.save_for_backward(coords)
        return csr(coords) @ matrix

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[None, Tensor]:
        """The transposed coordinates times what came back, again as a sparse matrix times a dense one."""
        (coords,) = ctx.saved_tensors
        return None, csr(coords.T) @ grads[0]


def csr(dense: Float[Tensor, "row column"]) -> Tensor:
    """The matrix with its zeros left out; torch says once in a process that this layout is in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
        return dense.contiguous().to_sparse_csr()
