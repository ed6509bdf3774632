"""What every format of directions offers, and the matrix format: v_k = Σ_r left_kr ⊗ right_kr for every parameter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients import Factored, Gradient, Gradients, Kept, costs_less_as_matrices, summed
from param_features.params import Modes

Factors = tuple[Tensor, Tensor]
"""(left [feature d_out rank], right [feature d_in rank])."""

SomeDirections = TypeVar("SomeDirections", bound="Directions")

_MOST_NUMBERS = 2**26
"""Directions are built for a product among themselves up to 256 MiB."""
_REBUILT = "s k, s k o rank, s k i rank -> s o i"


class Directions(ABC):
    """n_features directions in the space of a parameter subset, each held by tensors whose first axis is the feature.

    The five operations are `inner`, `gram`, `norm`, `materialize` and `scale_`; the rest is what a fit needs.
    """

    @classmethod
    @abstractmethod
    def largest_rank(cls, modes: Modes) -> int:
        """The rank beyond which a parameter of these modes gains nothing."""

    @classmethod
    @abstractmethod
    def leading(
        cls: type[SomeDirections],
        matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]],
        modes: Mapping[str, Modes],
        rank: int,
    ) -> SomeDirections:
        """Directions close to given matrices: what a fit starts from."""

    @property
    @abstractmethod
    def tensors(self) -> list[Tensor]:
        """Every tensor that is trained, in the subset's order."""

    @abstractmethod
    def with_tensors(self: SomeDirections, tensors: Sequence[Tensor]) -> SomeDirections:
        """The same format with other tensors, in the order of `tensors`."""

    @abstractmethod
    def folded(self) -> "LowRank":
        """The same directions in the matrix format; differentiable."""

    @abstractmethod
    def inner(self, gradients: Gradients) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ summed over parameters."""

    @abstractmethod
    def gram(self, other: "Directions | None" = None) -> Float[Tensor, "feature other"]:
        """⟨v_j, w_k⟩ with other directions, of any format, or with itself; nothing of size |W| is built."""

    @abstractmethod
    def norm(self) -> Float[Tensor, " feature"]:
        """‖v_k‖ over all parameters."""

    @abstractmethod
    def materialize(self) -> dict[str, Float[Tensor, "feature d_out d_in"]]:
        """Dense matrices by parameter name. Cost: memory n_features · |W|."""

    @abstractmethod
    def scale_(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each direction by a positive number, in place."""

    @abstractmethod
    def balance_(self) -> None:
        """Share each direction's length out evenly over its tensors, in place; the directions stay as they are.

        Left alone, one factor grows as another shrinks, until steps of equal size move one and not the other.
        """

    @abstractmethod
    def lengthening(self) -> list[Tensor]:
        """∂ ½‖v_k‖² / ∂ each of `tensors`: the step that changes each direction's length the most."""

    @property
    def n_features(self) -> int:
        """How many directions there are."""
        return len(self.tensors[0])

    def map(self: SomeDirections, function: Callable[[Tensor], Tensor]) -> SomeDirections:
        """Apply `function` to every tensor: choosing rows, moving, casting."""
        return self.with_tensors([function(tensor) for tensor in self.tensors])

    def rows(self: SomeDirections, index: Int[Tensor, " feature"] | slice | list[int]) -> SomeDirections:
        """Take some of the directions, in the order of the index."""
        return self.map(lambda tensor: tensor[index])

    def joined(self: SomeDirections, other: SomeDirections) -> SomeDirections:
        """Return these directions followed by others of the same format, shapes and ranks."""
        return self.with_tensors([torch.cat(pair) for pair in zip(self.tensors, other.tensors, strict=True)])


@dataclass(frozen=True, eq=False)
class LowRank(Directions):
    """n_features directions, each a low-rank matrix for every parameter of the subset.

    Attributes:
        factors: By parameter name, left [feature d_out rank] and right [feature d_in rank].
    """

    factors: Mapping[str, Factors]

    @classmethod
    def largest_rank(cls, modes: Modes) -> int:
        """The length of the matrix's smaller side."""
        return min(torch.Size(modes.out).numel(), torch.Size(modes.into).numel())

    @classmethod
    def leading(
        cls, matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]], modes: Mapping[str, Modes], rank: int
    ) -> "LowRank":
        """The best approximations of the matrices, by `leading_factors`; the modes play no part."""
        return leading_factors(matrices, rank)

    @property
    def tensors(self) -> list[Tensor]:
        """Every factor, in the order in which the subset has its parameters."""
        return [tensor for pair in self.factors.values() for tensor in pair]

    def with_tensors(self, tensors: Sequence[Tensor]) -> "LowRank":
        """Return directions of the same parameters with other factors."""
        return LowRank(dict(zip(self.factors, zip(tensors[::2], tensors[1::2], strict=True), strict=True)))

    def folded(self) -> "LowRank":
        """Return the directions as they are: they are in the matrix format already."""
        return self

    def renamed(self, names: Mapping[str, str]) -> "LowRank":
        """The same directions with the parameters under other names."""
        return LowRank({names[name]: pair for name, pair in self.factors.items()})

    def inner(self, gradients: Gradients) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ summed over parameters. Cost: each gradient format's `inner`."""
        return summed([gradients[name].inner(*pair) for name, pair in self.factors.items()])

    def overlaps(self, gradients: Gradients, kept: Kept = None) -> Float[Tensor, "sample feature"]:
        """`inner` with constant gradients, for the fit; with `kept`, of those entries alone, zero elsewhere."""
        return summed([gradients[name].overlaps(*pair, kept) for name, pair in self.factors.items()])

    def gram(self, other: Directions | None = None) -> Float[Tensor, "feature other"]:
        """⟨v_j, w_k⟩ = Σ_rr' (A_jr·A_kr')(B_jr·B_kr'), with itself by default; nothing of size |W| is built."""
        factors = self.factors if other is None else other.folded().factors
        return summed([_gram(pair, factors[name]) for name, pair in self.factors.items()])

    def norm(self) -> Float[Tensor, " feature"]:
        """‖v_k‖ over all parameters."""
        return self.square_norm().clamp(min=0).sqrt()

    def square_norm(self) -> Float[Tensor, " feature"]:
        """‖v_k‖²; by rounding it may fall below 0 where the components cancel."""
        squares = [
            (einsum(left, left, "f o r, f o s -> f r s") * einsum(right, right, "f i r, f i s -> f r s")).sum((1, 2))
            for left, right in self.factors.values()
        ]
        return summed(squares)

    def materialize(self) -> dict[str, Float[Tensor, "feature d_out d_in"]]:
        """Dense matrices by parameter name. Cost: memory n_features · |W|."""
        return {
            name: einsum(left, right, "feature o rank, feature i rank -> feature o i")
            for name, (left, right) in self.factors.items()
        }

    def rebuilt(self, coords: Float[Tensor, "sample feature"]) -> dict[str, Float[Tensor, "sample d_out d_in"]]:
        """Σ_k c_k v_k of each sample as matrices, by name. Cost: the coordinates that are not zero, at |W| each."""
        n_most = int((coords != 0).sum(1).max())
        which = coords.abs().topk(n_most, 1).indices
        weight = coords.gather(1, which)
        return {
            name: einsum(weight.to(left.device), left[which.to(left.device)], right[which.to(left.device)], _REBUILT)
            for name, (left, right) in self.factors.items()
        }

    @torch.no_grad()
    def scale_(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each direction by a positive number in place, half of it on either factor."""
        for tensor in self.tensors:
            tensor.mul_(factor.sqrt().to(tensor.device).reshape(-1, 1, 1))

    @torch.no_grad()
    def balance_(self) -> None:
        """Give both factors of every component the same norm, in place."""
        for left, right in self.factors.values():
            ratio = right.norm(dim=1, keepdim=True) / left.norm(dim=1, keepdim=True).clamp(min=1e-12)
            ratio = ratio.clamp(min=1e-12).sqrt()
            left.mul_(ratio)
            right.div_(ratio)

    @torch.no_grad()
    def lengthening(self) -> list[Tensor]:
        """∂ ½‖A Bᵀ‖² is A (BᵀB) for A and B (AᵀA) for B."""
        return [
            part for left, right in self.factors.values() for part in (left @ (right.mT @ right), right @ (left.mT @ left))
        ]


def n_numbers(like: Gradients) -> int:
    """How many numbers the parameters hold that gradients are of."""
    return sum(torch.Size(gradient.matrix_shape).numel() for gradient in like.values())


def number_bytes(like: Gradients) -> int:
    """Bytes of a number of gradients, and of what is computed from them."""
    return next(iter(like.values())).tensors[0].element_size()


def direction_bytes(like: Gradients, n_features: int, rank: int) -> int:
    """Bytes of so many directions in the space of these gradients' parameters."""
    n_each = sum(_cut(rank, gradient) * sum(gradient.matrix_shape) for gradient in like.values())
    return n_features * n_each * number_bytes(like)


def gram_bytes(like: Gradients, n_features: int, rank: int) -> int:
    """Bytes that `LowRank.gram` makes, where it is multiplied as factors."""
    return sum(3 * (n_features * _cut(rank, gradient)) ** 2 for gradient in like.values()) * number_bytes(like)


def overlap_bytes(like: Gradients, n_samples: int, n_directions: int, rank: int, *, is_graded: bool = False) -> int:
    """Bytes that `LowRank.overlaps` makes of so many samples, and keeps for its backward pass where there is one."""
    numbers = sum(_overlap_numbers(gradient, n_samples, n_directions, _cut(rank, gradient)) for gradient in like.values())
    return round((1.5 if is_graded else 1.0) * number_bytes(like) * numbers)


def _overlap_numbers(like: Gradient, n_samples: int, n_directions: int, rank: int) -> int:
    n_params = torch.Size(like.matrix_shape).numel()
    if len(like.tensors) == 1:
        return n_directions * n_params
    n_heard = n_samples * like.tensors[0].shape[1]
    is_factored = isinstance(like, Factored)
    if is_factored and costs_less_as_matrices(like.matrix_shape, n_samples, n_heard, n_directions, rank):
        return (n_samples + n_directions) * n_params
    return 3 * n_heard * n_directions * rank


def _cut(rank: int, gradient: Gradient) -> int:
    """The rank that a parameter's directions have, which is that of its matrix at most."""
    return min(rank, *gradient.matrix_shape)


def _gram(ours: Factors, theirs: Factors) -> Float[Tensor, "feature other"]:
    (left, right), (other_left, other_right) = ours, theirs
    n_features, n_others = len(left), len(other_left)
    rank, other_rank = left.shape[2], other_left.shape[2]
    if _costs_less_built(ours, theirs):
        return _built(*ours) @ (_built(*ours) if ours is theirs else _built(*theirs)).T
    out = _columns(left).T @ _columns(other_left)
    into = _columns(right).T @ _columns(other_right)
    return (out * into).reshape(n_features, rank, n_others, other_rank).sum((1, 3))


def _costs_less_built(ours: Factors, theirs: Factors) -> bool:
    (left, right), (other, _) = ours, theirs
    (n_features, d_out, rank), d_in, (n_others, _, other_rank) = left.shape, right.shape[1], other.shape
    built = (n_features * rank + n_others * other_rank + n_features * n_others) * d_out * d_in
    is_small = max(n_features, n_others) * d_out * d_in <= _MOST_NUMBERS
    return is_small and built < n_features * n_others * rank * other_rank * (d_out + d_in)


def _built(left: Tensor, right: Tensor) -> Float[Tensor, "feature d_out_d_in"]:
    return (left @ right.mT).flatten(1)


def _columns(factor: Float[Tensor, "feature d rank"]) -> Float[Tensor, "d feature_rank"]:
    return factor.transpose(1, 2).reshape(-1, factor.shape[1]).T


def leading_factors(matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]], rank: int) -> LowRank:
    """The best rank-r factors of given matrices, balanced: ‖left_r‖ = ‖right_r‖.

    A matrix whose smaller side is below `rank` gets as many factors as it has.
    Cost: one SVD of d_out × d_in per direction and parameter.
    """
    factors = {}
    for name, matrix in matrices.items():
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        root = s[:, :rank].sqrt().unsqueeze(1)
        factors[name] = (u[:, :, :rank] * root, vh[:, :rank].mT * root)
    return LowRank(factors)
