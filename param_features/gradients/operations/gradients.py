"""From the gradient at an operation's output to that of the Parameter, and from there to the matrix that was chosen."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients.operations.operands import Operand
from param_features.gradients.rules.linear import by_position
from param_features.gradients.types import Dense, Factored, Gradient, Indexed
from param_features.params import ParamView, has_rows_in, rows_of_part

OfStored = Factored | Indexed | Tensor
"""Of the Parameter: [d0, d1] in factors; a table's rows with their gradients; or whole, [sample *shape]."""

Arrange = Callable[[Tensor], Tensor]
"""A tensor of the operation with the samples first."""

Contribution = Callable[[Operand, Tensor, Arrange], OfStored]
"""(operand, output gradient [sample ...], arrange) -> the gradient of the Parameter."""


def multiplied(source: Tensor) -> Contribution:
    """Y = A x on the last axis."""

    def contribution(operand: Operand, delta: Tensor, arrange: Arrange) -> Factored:
        if operand.stored.dim() != 2 or not operand.is_matrix:
            raise ValueError("the matrix that is multiplied is the parameter in another arrangement")
        delta, inputs = by_position(delta), by_position(arrange(source))
        if operand.is_whole:
            return Factored(delta, inputs)
        (rows, columns), size = (operand.along(0), operand.along(1)), operand.stored.shape
        if operand.is_transposed:
            return turned(Factored(_spread(delta, columns[:, 0], size[1]), _spread(inputs, rows[0], size[0])))
        return Factored(_spread(delta, rows[:, 0], size[0]), _spread(inputs, columns[0], size[1]))

    return contribution


def looked_up(index: Tensor, padding: int | None = None) -> Contribution:
    """Y = the rows of a table at some indices; a padding row gets no gradient, as in torch."""

    def contribution(operand: Operand, delta: Tensor, arrange: Arrange) -> Indexed:
        if operand.stored.dim() != 2 or not operand.is_matrix or operand.is_transposed:
            raise ValueError("the table that is read is the parameter in another arrangement")
        rows, places = arrange(index).reshape(len(delta), -1), operand.along(0)[:, 0]
        delta = delta.reshape(*rows.shape, -1)
        if padding is not None:
            delta = delta * (rows != padding % len(places)).unsqueeze(-1)
        return Indexed(delta, places[rows], operand.stored.shape[0])

    return contribution


def added(scale: float = 1.0, place: tuple[int, int, int] | None = None) -> Contribution:
    """Y = x + scale · p, broadcast; or p put beside others along an axis, at (axis, start, length)."""

    def contribution(operand: Operand, delta: Tensor, arrange: Arrange) -> Tensor:
        delta = delta if place is None else delta.narrow(*place)
        return _pulled(operand, scale * delta)

    return contribution


def scaled(by: Tensor) -> Contribution:
    """Y = p · x, broadcast."""

    def contribution(operand: Operand, delta: Tensor, arrange: Arrange) -> Tensor:
        return _pulled(operand, delta * arrange(by))

    return contribution


def _spread(factor: Tensor, places: Int[Tensor, " part"], size: int) -> Tensor:
    """A factor of part of the Parameter with its entries at their places, zero elsewhere."""
    whole = factor.new_zeros(*factor.shape[:-1], size)
    whole[..., places] = factor
    return whole


def _pulled(operand: Operand, delta: Float[Tensor, "sample ..."]) -> Float[Tensor, "sample ..."]:
    """The gradient of what was broadcast over samples and further axes, taken back to the Parameter."""
    stored = operand.stored.detach().to(delta.dtype)
    value, pull, *_ = torch.func.vjp(_first_of(operand), stored)
    shape = (1,) * (delta.dim() - value.dim()) + tuple(value.shape)
    if shape[0] != 1:
        raise ValueError("the parameter differs from sample to sample")
    axes = [axis for axis, size in enumerate(shape) if axis and size == 1 and delta.shape[axis] > 1]
    summed = delta.sum(axes, keepdim=True) if axes else delta
    return torch.vmap(lambda row: pull(row.reshape(value.shape))[0])(summed)


def _first_of(operand: Operand) -> Callable[[Tensor], Tensor]:
    """As it is read, one entry along the first axis where all are the same."""
    return (lambda tensor: operand.read(tensor)[:1]) if operand.is_expanded else operand.read


@dataclass(frozen=True)
class Viewed:
    """How a chosen matrix lies in its Parameter.

    Attributes:
        view: The matrix.
        rows: For a part that is rows of a larger matrix, which.
        is_shared: Whether an output without an axis for samples is shared by all of them.
    """

    view: ParamView
    rows: Int[Tensor, " d_out"] | None = None
    is_shared: bool = False

    @classmethod
    def of(cls, view: ParamView, *, is_shared: bool = False) -> "Viewed":
        """Read a view once."""
        has_rows = view.layout.part is not None and not view.is_member
        return cls(view, rows_of_part(view) if has_rows else None, is_shared)

    @staticmethod
    def is_known(view: ParamView) -> bool:
        """Whether the matrix is the whole Parameter or some of its rows, as an expert's slice of a stack is not."""
        return view.layout.part is None or view.tensor.dim() == view.stored.dim()

    @property
    def is_transposed(self) -> bool:
        """Whether the Parameter holds the matrix transposed."""
        return has_rows_in(self.view.owner) if self.view.layout.pattern else self.view.fold == "i o -> o i"

    def gradient(self, of_stored: OfStored) -> Gradient:
        """The gradient of the matrix, from that of the Parameter."""
        if isinstance(of_stored, Tensor):
            return Dense(self.view.to_matrix(torch.vmap(self.view.layout.read)(of_stored)))
        if isinstance(of_stored, Indexed):
            gradient = of_stored if self.is_transposed else turned(of_stored.factored())
        else:
            gradient = turned(of_stored) if self.is_transposed else of_stored
        return gradient if self.rows is None else gradient.rows(self.rows.to(gradient.tensors[0].device))


def turned(gradient: Factored) -> Factored:
    """The gradient of the transposed matrix; what nothing comes back to is zero, so that a fit can leave it out."""
    return Factored(gradient.inputs * (gradient.delta != 0).any(-1, keepdim=True), gradient.delta)
