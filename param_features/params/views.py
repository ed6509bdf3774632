"""Parameters seen as matrices, and where in a forward pass their inputs and output gradients show."""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.params.folds import Modes, modes_of, unfold_matrix
from param_features.params.layout import WHOLE, Layout


@dataclass(frozen=True)
class ParamView:
    """One parameter of a model, or part of one, seen as a matrix.

    Attributes:
        name: The library's own name.
        owner: The module that holds the parameter.
        attribute: Its key in `owner._parameters`.
        fold: einops pattern from the tensor to `[d_out, d_in]`, such as `"head i o -> (head o) i"` for W_K.
        also_at: Further places that hold the same stored tensor (tied weights).
        layout: How the tensor of that name lies inside the stored one.
    """

    name: str
    owner: nn.Module
    attribute: str
    fold: str
    also_at: tuple[tuple[nn.Module, str], ...] = ()
    layout: Layout = WHOLE

    @property
    def stored(self) -> Tensor:
        """The model's own Parameter."""
        return cast(Tensor, self.owner._parameters[self.attribute])

    @property
    def tensor(self) -> Tensor:
        """The tensor of that name and shape: the Parameter itself, or read out of it; not for editing."""
        return self.layout.read(self.stored)

    @property
    def places(self) -> tuple[tuple[nn.Module, str], ...]:
        """Every (module, attribute) that holds the parameter."""
        return ((self.owner, self.attribute), *self.also_at)

    @property
    def is_member(self) -> bool:
        """Whether it is one of the matrices that a Parameter stacks along an axis, such as an expert's."""
        return self.layout.part is not None and len(self.fold.partition("->")[0].split()) < self.stored.dim()

    @property
    def shape(self) -> torch.Size:
        """Shape of the tensor."""
        return self.tensor.shape

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in) of the matrix view."""
        return self.modes.matrix_shape

    @property
    def modes(self) -> Modes:
        """The axes of the tensor that make up d_out and d_in, in the order in which the fold runs through them."""
        return modes_of(self.fold, self.shape)

    def to_matrix(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*batch d_out d_in"]:
        """View a tensor of the parameter's shape, with any leading axes, as matrices."""
        left, right = self.fold.split("->")
        return rearrange(tensor, f"... {left} -> ... {right}")

    def from_matrix(self, matrix: Float[Tensor, "*batch d_out d_in"]) -> Float[Tensor, "*shape"]:
        """Give a matrix view back the shape of the parameter: the inverse of `to_matrix`."""
        return unfold_matrix(matrix, self.fold, self.shape)


def all_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Every Parameter that a submodule holds, each once; some libraries' own `parameters()` leaves some out."""
    parameters = (
        parameter for child in module.modules() for parameter in child._parameters.values() if parameter is not None
    )
    return list(dict.fromkeys(parameters))


class ParamInfo(NamedTuple):
    """What `pf.list_params` tells about a parameter.

    Attributes:
        name: The library's own name.
        shape: Shape of the tensor.
        n_params: Number of its entries.
        parts: Names of its parts where it is a fused matrix: `"q"` is chosen by `"<name>[q]"`.
    """

    name: str
    shape: tuple[int, ...]
    n_params: int
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """One matrix of a layer that holds many in one tensor: an expert's in a mixture.

    Attributes:
        layer: The layer.
        attribute: Its tensor.
        number: Which along the tensor's first axis.
    """

    layer: nn.Module
    attribute: str
    number: int


@dataclass(frozen=True)
class Site:
    """A tensor inside the forward pass: a module's output, or one of its inputs.

    Attributes:
        module: The module whose call passes the tensor.
        which: `"output"`, the position (int) or keyword (str) of an input, or `"call"` for all inputs that are tensors.
    """

    module: nn.Module
    which: str | int = "output"


@dataclass(frozen=True)
class Tap:
    """Where one use of a parameter shows its input and its output gradient.

    Attributes:
        rule: Key of the layer rule: the class of the layer (looked up along its MRO) or a rule's name.
        layer: The module that the rule may ask for settings such as a stride, or the member of one.
        attribute: The parameter's name within the layer.
        input: The tensor that the parameter is applied to.
        output: The tensor that the parameter produces; its gradient is δ.
        rows: For a part of a fused matrix, the rows of the rule's matrix that are its own; None for all.
    """

    rule: type | str
    layer: nn.Module | Member
    attribute: str
    input: Site
    output: Site
    rows: Int[Tensor, " d_out"] | None = field(default=None, compare=False)
