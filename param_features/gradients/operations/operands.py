"""What is derived from a watched tensor before it is used: transposed, sliced, cast, shifted by a number."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

_CASTS = (Tensor.to, Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.type, Tensor.type_as)
_COPIES = (Tensor.contiguous, Tensor.clone, torch.clone, Tensor.requires_grad_)
_OF_MATRICES = (
    Tensor.T.__get__, Tensor.mT.__get__,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.t, torch.t, Tensor.transpose, torch.transpose, Tensor.permute, torch.permute,
    Tensor.chunk, torch.chunk, Tensor.split, torch.split, Tensor.narrow, torch.narrow, Tensor.__getitem__,
)  # fmt: skip
_OTHERS = (
    Tensor.reshape, torch.reshape, Tensor.view, Tensor.flatten, torch.flatten, Tensor.squeeze, torch.squeeze,
    Tensor.unsqueeze, torch.unsqueeze, Tensor.expand, Tensor.expand_as, Tensor.unbind, torch.unbind,
)  # fmt: skip
_WITH_NUMBERS = (
    Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.neg, torch.add, torch.sub, torch.mul, torch.div, torch.neg,
    Tensor.__radd__, Tensor.__rsub__, Tensor.__rmul__, Tensor.__neg__,
)  # fmt: skip
_VIEWS = {*_OF_MATRICES, *_OTHERS}


def _whole(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Operand:
    """A watched tensor as an operation gets it.

    Attributes:
        stored: The model's own Parameter.
        read: From a tensor of the Parameter's shape to what the operation gets, casts left out; affine.
        is_matrix: Whether rows, columns and their order alone tell the two apart.
        is_expanded: Whether all entries along the first axis are one and the same.
    """

    stored: Tensor
    read: Callable[[Tensor], Tensor] = _whole
    is_matrix: bool = True
    is_expanded: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is the Parameter as it is stored."""
        return self.read is _whole

    def along(self, axis: int) -> Int[Tensor, "row column"]:
        """Where along an axis of the Parameter each entry of the matrix lies."""
        return self.read(_counted(self.stored, axis))

    @property
    def is_transposed(self) -> bool:
        """Whether the Parameter's rows are the matrix's columns."""
        if self.is_whole:
            return False
        row, column = self.along(0), self.along(1)
        return bool((row[:1, :2] != row[:1, :1]).any() or (column[:2, :1] != column[:1, :1]).any())

    @property
    def transposed(self) -> "Operand":
        """The operand of the transposed matrix."""
        return replace(self, read=lambda tensor: self.read(tensor).mT)


def _counted(stored: Tensor, axis: int) -> Tensor:
    """Each entry's place along one axis, without room of its own."""
    places = torch.arange(stored.shape[axis], device=stored.device)
    return places.reshape([-1 if n == axis else 1 for n in range(stored.dim())]).expand(stored.shape)


def derived(
    operand: Operand, func: Callable, args: tuple, kwargs: dict[str, Any], result: Any
) -> list[tuple[Tensor, Operand]]:
    """The operands in what a function made of one; empty where the function is no view of it."""
    if func in _CASTS or func in _COPIES or _keeps_shape(func, args[0], result):
        return [(result, operand)]
    further = [*args[1:], *kwargs.values()]
    if func in _WITH_NUMBERS and not any(isinstance(value, Tensor) for value in further):
        return [(result, _through(operand, lambda tensor: func(tensor, *args[1:], **kwargs), is_matrix=False))]
    if func not in _VIEWS or not _is_basic(further):
        return []
    is_matrix = func in _OF_MATRICES
    if isinstance(result, Tensor):
        read = _through(operand, lambda tensor: func(tensor, *args[1:], **kwargs), is_matrix=is_matrix)
        return [(result, replace(read, is_expanded="expand" in func.__name__ and result.stride()[:1] == (0,)))]
    return [
        (part, _through(operand, lambda tensor, n=n: func(tensor, *args[1:], **kwargs)[n], is_matrix=is_matrix))
        for n, part in enumerate(result)
    ]


def _through(operand: Operand, function: Callable[[Tensor], Tensor], *, is_matrix: bool) -> Operand:
    return Operand(operand.stored, lambda tensor: function(operand.read(tensor)), operand.is_matrix and is_matrix)


def _keeps_shape(func: Callable, before: Tensor, result: Any) -> bool:
    return func in (Tensor.reshape, torch.reshape, Tensor.view) and result.shape == before.shape


def _is_basic(values: list[Any]) -> bool:
    """Whether nothing is picked by a tensor of indices."""
    return not any(
        isinstance(value, Tensor) or (isinstance(value, tuple | list) and not _is_basic([*value])) for value in values
    )
