"""The CP format: a feature is a sum of rank-1 terms over all axes of a parameter, v_k = Σ_r ⊗_m A_m[k, :, r]."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats.low_rank import LowRank
from param_features.fit.formats.multilinear import Factor, Multilinear, higher_order_svd, khatri_rao, unfolded
from param_features.params import Modes

Terms = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""Factors [feature d rank] of the axes that make up d_out, and of those that make up d_in."""

_SPARE = 7
_SWEEPS = 50


@dataclass(frozen=True)
class CP(Multilinear):
    """n_features directions, each a sum of a few rank-1 tensors for every parameter of the subset.

    A term of W_K is one vector over heads, one within the heads and one over d_in. Of a parameter with two axes this is the
    matrix format.

    Attributes:
        factors: By parameter name, a factor [feature d rank] for every axis.

    Source: the first drafts of L3D, "Feature and Circuit Identification through Sparse Eigendecomposition".
    """

    factors: Mapping[str, Terms]

    @classmethod
    def largest_rank(cls, modes: Modes) -> int:
        """The matrix's rank. Some tensors take more terms, but folded those hold more numbers than the dense ones."""
        return LowRank.largest_rank(modes)

    @classmethod
    def leading(
        cls, matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]], modes: Mapping[str, Modes], rank: int
    ) -> "CP":
        """Terms that come close to given matrices, balanced; see `leading_terms`.

        A parameter gets `largest_rank` terms where that is fewer.
        """
        factors = {}
        for name, matrix in matrices.items():
            out, into = modes[name]
            terms = leading_terms(matrix.reshape(-1, *out, *into), min(rank, cls.largest_rank(modes[name])))
            factors[name] = (tuple(terms[: len(out)]), tuple(terms[len(out) :]))
        directions = CP(factors)
        directions.balance_()
        return directions

    @property
    def tensors(self) -> list[Tensor]:
        """Every factor, in the order in which the subset has its parameters."""
        return [tensor for out, into in self.factors.values() for tensor in (*out, *into)]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "CP":
        """Return directions of the same axes with other factors."""
        remaining = iter(tensors)
        return CP(
            {
                name: (tuple(next(remaining) for _ in out), tuple(next(remaining) for _ in into))
                for name, (out, into) in self.factors.items()
            }
        )

    def folded(self) -> LowRank:
        """Exactly the same directions: either side's factors multiplied out. Rank and number of components stay."""
        return LowRank({name: (khatri_rao(out), khatri_rao(into)) for name, (out, into) in self.factors.items()})

    @torch.no_grad()
    def scale_(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each direction by a positive number in place, an equal share of it on every axis."""
        for out, into in self.factors.values():
            for tensor in (*out, *into):
                tensor.mul_(factor[:, None, None] ** (1 / len((*out, *into))))

    @torch.no_grad()
    def balance_(self) -> None:
        """Give all factors of every term the same norm, in place."""
        for out, into in self.factors.values():
            norms = torch.stack([tensor.norm(dim=1, keepdim=True) for tensor in (*out, *into)]).clamp(min=1e-12)
            for tensor, ratio in zip((*out, *into), norms.log().mean(0).exp() / norms, strict=True):
                tensor.mul_(ratio)


def leading_terms(tensor: Float[Tensor, " feature *axes"], rank: int) -> list[Factor]:
    """A factor per axis: rank-1 terms found one after the other in what is left, then refitted together.

    The terms of a tensor of that rank are found where the refitting converges, which it does not always; of a matrix they
    are its leading singular vectors. Cost: one SVD per direction and axis; the rest happens in a core with `rank` + 7
    of each axis.

    Source: refitting is alternating least squares, Kolda and Bader, "Tensor Decompositions and Applications", section 3.4.
    """
    core, bases = higher_order_svd(tensor, [min(rank + _SPARE, d) for d in tensor.shape[1:]])
    terms = [_refitted(core, higher_order_svd(core, [1] * len(bases))[1])]
    for _ in range(rank - 1):
        left_over = core - _product(terms, core.shape)
        terms.append(_refitted(left_over, higher_order_svd(left_over, [1] * len(bases))[1]))
    factors = [torch.cat(columns, 2) for columns in zip(*terms, strict=True)]
    return [basis @ factor for basis, factor in zip(bases, _refitted(core, factors), strict=True)]


def _product(terms: list[list[Factor]], shape: torch.Size) -> Float[Tensor, " feature *axes"]:
    return khatri_rao([torch.cat(columns, 2) for columns in zip(*terms, strict=True)]).sum(2).reshape(shape)


def _refitted(tensor: Float[Tensor, " feature *axes"], factors: list[Factor]) -> list[Factor]:
    """Each axis's factor in turn by least squares with the others held; the last one carries the size."""
    factors = list(factors)
    for _ in range(_SWEEPS):
        for axis in range(len(factors)):
            others = factors[:axis] + factors[axis + 1 :]
            gram = prod((other.mT @ other for other in others[1:]), start=others[0].mT @ others[0])
            target = unfolded(tensor, axis) @ khatri_rao(others)
            solution = target @ torch.linalg.pinv(gram, hermitian=True, rtol=1e-6)
            is_last = axis == len(factors) - 1
            factors[axis] = solution if is_last else solution / solution.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return factors
