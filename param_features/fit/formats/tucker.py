"""The Tucker format: a feature is a small core multiplied along every axis of a parameter, v_k = core_k ×_m A_m[k]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats.low_rank import LowRank
from param_features.fit.formats.multilinear import Factor, Multilinear, higher_order_svd, kronecker
from param_features.params import Modes


class Block(NamedTuple):
    """One parameter's part of the directions.

    Attributes:
        core: [feature r_1 … r_M], the axes that make up d_out first.
        out: Factors [feature d_m r_m] of the axes that make up d_out.
        into: The same for d_in.
    """

    core: Tensor
    out: tuple[Tensor, ...]
    into: tuple[Tensor, ...]


@dataclass(frozen=True)
class Tucker(Multilinear):
    """n_features directions, each a tensor of low rank along every axis of every parameter of the subset.

    Attributes:
        blocks: By parameter name, the core and a factor for every axis.

    Source: L3D (arXiv 2504.00194). Differs: columns of the factors have unit norm, not the core.
    """

    blocks: Mapping[str, Block]

    @classmethod
    def largest_rank(cls, modes: Modes) -> int:
        """The largest rank that any axis can have."""
        shape = (*modes.out, *modes.into)
        return max(axis_ranks(shape, max(shape)))

    @classmethod
    def leading(
        cls, matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]], modes: Mapping[str, Modes], rank: int
    ) -> "Tucker":
        """The truncated higher-order SVD of given matrices seen as tensors. Cost: one SVD per direction and axis."""
        blocks = {}
        for name, matrix in matrices.items():
            out, into = modes[name]
            core, factors = higher_order_svd(matrix.reshape(-1, *out, *into), axis_ranks((*out, *into), rank))
            blocks[name] = Block(core, tuple(factors[: len(out)]), tuple(factors[len(out) :]))
        return Tucker(blocks)

    @property
    def tensors(self) -> list[Tensor]:
        """Every core and its factors, in the order in which the subset has its parameters."""
        return [tensor for core, out, into in self.blocks.values() for tensor in (core, *out, *into)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "Tucker":
        """Return directions of the same axes with other cores and factors."""
        remaining = iter(tensors)
        return Tucker(
            {
                name: Block(next(remaining), tuple(next(remaining) for _ in out), tuple(next(remaining) for _ in into))
                for name, (_, out, into) in self.blocks.items()
            }
        )

    def folded(self) -> LowRank:
        """Exactly the same directions. Their matrix rank is the smaller of Π r_m over d_out's axes and over d_in's."""
        return LowRank({name: _folded(block) for name, block in self.blocks.items()})

    @torch.no_grad()
    def scale_(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each direction's cores by a positive number, in place."""
        for core, _, _ in self.blocks.values():
            core.mul_(factor.reshape(-1, *(1 for _ in core.shape[1:])))

    @torch.no_grad()
    def balance_(self) -> None:
        """Give every column of every factor unit norm, in place; the cores take the lengths."""
        for core, out, into in self.blocks.values():
            for axis, factor in enumerate((*out, *into)):
                length = factor.norm(dim=1, keepdim=True).clamp(min=1e-12)
                factor.div_(length)
                core.movedim(axis + 1, -1).mul_(length.reshape(len(core), *(1 for _ in core.shape[2:]), -1))


def axis_ranks(shape: Sequence[int], rank: int) -> list[int]:
    """`rank` for every axis, cut to its length and to the product of the other ranks: more would add no tensor."""
    ranks = [min(rank, d) for d in shape]
    return [min(r, prod(ranks[:axis] + ranks[axis + 1 :])) for axis, r in enumerate(ranks)]


def _folded(block: Block) -> tuple[Tensor, Tensor]:
    """The side with more columns takes in the core, so that the other side's number of columns is the rank."""
    core = block.core.flatten(len(block.out) + 1).flatten(1, len(block.out))
    if core.shape[1] >= core.shape[2]:
        return _multiplied(core.mT.unflatten(2, block.core.shape[1 : len(block.out) + 1]), block.out), kronecker(block.into)
    return kronecker(block.out), _multiplied(core.unflatten(2, block.core.shape[len(block.out) + 1 :]), block.into)


def _multiplied(
    core: Float[Tensor, "feature rank *ranks"], factors: Sequence[Factor]
) -> Float[Tensor, "feature d_all rank"]:
    """The core multiplied along each of its last axes: one at a time, so that their Kronecker product is never built."""
    for factor in factors:
        core = einsum(core, factor, "f rank r ..., f d r -> f rank ... d")
    return core.flatten(2).mT
