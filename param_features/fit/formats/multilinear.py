"""What CP and Tucker share: factors for every axis of a parameter, and operations that go through the matrix format."""

from collections.abc import Sequence
from functools import reduce

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats.low_rank import Directions
from param_features.gradients import Gradients

Factor = Float[Tensor, "feature _ _"]
"""[feature d rank] of one axis; the lengths differ between axes."""


class Multilinear(Directions):
    """Directions as products over the axes of each parameter; folding costs far less than a product with gradients."""

    def inner(self, gradients: Gradients) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ summed over parameters. Cost: that of the matrix format at the folded rank."""
        return self.folded().inner(gradients)

    def gram(self, other: Directions | None = None) -> Float[Tensor, "feature other"]:
        """⟨v_j, w_k⟩ with other directions, of any format, or with itself; nothing of size |W| is built."""
        return self.folded().gram(other)

    def norm(self) -> Float[Tensor, " feature"]:
        """‖v_k‖ over all parameters."""
        return self.folded().norm()

    def materialize(self) -> dict[str, Float[Tensor, "feature d_out d_in"]]:
        """Dense matrices by parameter name. Cost: memory n_features · |W|."""
        return self.folded().materialize()

    def lengthening(self) -> list[Tensor]:
        """∂ ½‖v_k‖² / ∂ each of `tensors`, by autograd through the fold."""
        with torch.enable_grad():
            leaves = self.map(lambda tensor: tensor.detach().requires_grad_())
            return list(torch.autograd.grad(0.5 * leaves.folded().square_norm().sum(), leaves.tensors))


def khatri_rao(factors: Sequence[Factor]) -> Float[Tensor, "feature d_all rank"]:
    """Products of the factors' columns of equal number; the last axis runs fastest."""
    return reduce(lambda one, two: einsum(one, two, "f i r, f j r -> f i j r").flatten(1, 2), factors)


def kronecker(factors: Sequence[Factor]) -> Float[Tensor, "feature d_all rank_all"]:
    """Products of all the factors' columns; the last axis runs fastest, in rows and in columns."""
    return reduce(lambda one, two: einsum(one, two, "f i r, f j s -> f i j r s").flatten(3).flatten(1, 2), factors)


def unfolded(tensor: Float[Tensor, " feature *axes"], axis: int) -> Float[Tensor, "feature d rest"]:
    """The tensor as a matrix: one axis (counted without the features) against all the others, in their order."""
    return tensor.movedim(axis + 1, 1).flatten(2)


def higher_order_svd(
    tensor: Float[Tensor, " feature *axes"], ranks: Sequence[int]
) -> tuple[Float[Tensor, " feature *ranks"], list[Factor]]:
    """A core and orthonormal factors whose product is close to the tensor; equal to it where its ranks are no larger.

    Each axis in turn is cut to the leading left singular vectors of what the axes before it have left.
    Cost: one SVD per direction and axis.

    Source: Vannieuwenhoven et al., "A new truncation strategy for the higher-order singular value decomposition", 2012.
    """
    factors = []
    for axis, rank in enumerate(ranks):
        factor = torch.linalg.svd(unfolded(tensor, axis), full_matrices=False).U[:, :, :rank]
        moved = tensor.movedim(axis + 1, 1)
        tensor = (factor.mT @ moved.flatten(2)).unflatten(2, moved.shape[2:]).movedim(1, axis + 1)
        factors.append(factor)
    return tensor, factors
