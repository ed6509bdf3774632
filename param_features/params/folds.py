"""Patterns that view a parameter's tensor as a matrix [d_out, d_in], and the way back."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

_SIDE = re.compile(r"\([^)]*\)|\S+")
"""One side of a matrix in a fold: an axis, or several in brackets."""

_AXIS = re.compile(r"[a-z][a-z0-9]{0,15}")


def default_fold(n_dims: int) -> str:
    """The einops pattern that views a tensor with `n_dims` axes as a matrix: first axis out, the others in."""
    axes = ["o", *(f"i{axis}" for axis in range(1, n_dims))][:n_dims]
    d_out, d_in = "".join(axes[:1]) or "1", " ".join(axes[1:]) or "1"
    return f"{' '.join(axes)} -> {d_out} {f'({d_in})' if len(axes) > 2 else d_in}"


def is_fold(fold: str, n_dims: int) -> bool:
    """Whether a pattern views a tensor with `n_dims` axes as a matrix: every axis once on either side, d_out and d_in right.

    The patterns of every adapter are of that form; einops itself accepts others.
    """
    left, arrow, right = fold.partition(" -> ")
    sides = _SIDE.findall(right)
    axes = [axis for side in sides for axis in side.strip("()").split() if side != "1"]
    is_spelt = right == " ".join(sides) and all(map(_AXIS.fullmatch, axes)) and len(sides) == 2
    is_whole = sorted(axes) == sorted(left.split()) and len(set(axes)) == len(axes) == n_dims
    return bool(arrow) and is_spelt and is_whole and left == " ".join(left.split()) and "()" not in sides


def unfold_matrix(matrix: Float[Tensor, "*batch d_out d_in"], fold: str, shape: Sequence[int]) -> Float[Tensor, "*shape"]:
    """A parameter's tensor, with any leading axes, from its matrix view."""
    left, right = fold.split("->")
    return rearrange(matrix, f"... {right} -> ... {left}", **dict(zip(left.split(), shape, strict=True)))


class Modes(NamedTuple):
    """The axes that a matrix view folds together, by their lengths; `(1,)` where a side has none.

    Attributes:
        out: Those of d_out: (head, d_head) of W_K.
        into: Those of d_in: (channel, height, width) of a convolution.
    """

    out: tuple[int, ...]
    into: tuple[int, ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in): the product of the axes on either side."""
        return math.prod(self.out), math.prod(self.into)

    def __str__(self) -> str:
        """`4·8×64`: four heads of eight, by 64."""
        return "×".join("·".join(map(str, side)) for side in self)


def modes_of(fold: str, shape: Sequence[int]) -> Modes:
    """The axes that a pattern folds into either side, by their lengths in a tensor of that shape."""
    left, right = fold.split("->")
    lengths = dict(zip(left.split(), shape, strict=True)) | {"1": 1}
    out, into = (tuple(lengths[axis] for axis in side.strip("()").split()) for side in _SIDE.findall(right))
    return Modes(out, into)
