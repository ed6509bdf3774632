"""Products, tables and sums."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from param_features.gradients.operations.gradients import added, looked_up, multiplied, scaled
from param_features.gradients.operations.watch import Watch, handles


@handles(functional.linear)
def linear(watch: Watch, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y = W x + b."""
    output = functional.linear(input, weight, bias)
    return watch.rooted(output, (weight, multiplied(input.detach())), (bias, added()))


@handles(torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, Tensor.__matmul__)
def matmul(watch: Watch, input: Tensor, mat2: Tensor) -> Any:
    """Y = x W, with a matrix on the right."""
    operand = watch.operand(mat2)
    if operand is None or mat2.dim() != 2 or watch.operand(input) is not None:
        return NotImplemented
    contribution = multiplied(input.detach())
    return watch.rooted(
        torch.matmul(input, mat2), (mat2, lambda of_right, *further: contribution(of_right.transposed, *further))
    )


@handles(functional.embedding)
def embedding(
    watch: Watch,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of a table by index; not where torch changes the table or its gradient on the way."""
    if max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    output = functional.embedding(input, weight, padding_idx, sparse=sparse)
    return watch.rooted(output, (weight, looked_up(input, padding_idx)))


@handles(Tensor.__getitem__)
def indexed(watch: Watch, table: Tensor, key: Any) -> Any:
    """`table[index]` and `table[index, :]`, with a tensor of indices; slices are views."""
    first, *others = key if isinstance(key, tuple) else (key,)
    if watch.operand(table) is None or not isinstance(first, Tensor) or any(other != slice(None) for other in others):
        return NotImplemented
    if first.is_floating_point() or first.dtype == torch.bool or not first.dim():
        return NotImplemented
    return watch.rooted(table[first], (table, looked_up(first % len(table))))


@handles(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)
def add(watch: Watch, input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Y = x + alpha · p."""
    if not isinstance(input, Tensor) or not isinstance(other, Tensor):
        return NotImplemented
    return watch.rooted(torch.add(input, other, alpha=alpha), (input, added()), (other, added(alpha)))


@handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def mul(watch: Watch, input: Any, other: Any) -> Any:
    """Y = x · p, entry by entry."""
    both = isinstance(input, Tensor) and isinstance(other, Tensor)
    if not both or (watch.operand(input) is not None and watch.operand(other) is not None):
        return NotImplemented
    return watch.rooted(input * other, (input, scaled(other.detach())), (other, scaled(input.detach())))


@handles(torch.cat, torch.concat)
def cat(watch: Watch, tensors: Any, dim: int = 0) -> Any:
    """Put beside others along an axis that is not the samples'."""
    output = torch.cat(tensors, dim)
    dim = dim % output.dim()
    if dim == 0:
        return NotImplemented
    sizes = [tensor.shape[dim] for tensor in tensors]
    places = [(dim, sum(sizes[:n]), size) for n, size in enumerate(sizes)]
    return watch.rooted(output, *((tensor, added(place=place)) for tensor, place in zip(tensors, places, strict=True)))
