"""The matrix format: each feature holds rank-r factors of every parameter's matrix, v_k = Σ_r left_kr ⊗ right_kr."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients import Gradients

Factors = tuple[Tensor, Tensor]
"""(left [feature d_out rank], right [feature d_in rank])."""


@dataclass(frozen=True)
class LowRank:
    """n_features directions, each a low-rank matrix for every parameter of the subset.

    Attributes:
        factors: By parameter name, left [feature d_out rank] and right [feature d_in rank].
    """

    factors: Mapping[str, Factors]

    @property
    def n_features(self) -> int:
        """Number of directions."""
        return len(next(iter(self.factors.values()))[0])

    @property
    def tensors(self) -> list[Tensor]:
        """Every factor, in the subset's order."""
        return [tensor for pair in self.factors.values() for tensor in pair]

    def map(self, function) -> "LowRank":
        """Apply `function` to every factor: choosing rows, moving, casting."""
        return LowRank({name: (function(left), function(right)) for name, (left, right) in self.factors.items()})

    def renamed(self, names: Mapping[str, str]) -> "LowRank":
        """The same directions with the parameters under other names."""
        return LowRank({names[name]: pair for name, pair in self.factors.items()})

    def rows(self, index: Int[Tensor, " feature"] | slice | list[int]) -> "LowRank":
        """Some of the directions."""
        return self.map(lambda tensor: tensor[index])

    def joined(self, other: "LowRank") -> "LowRank":
        """This one's directions followed by the other's."""
        return LowRank(
            {
                name: (torch.cat([left, other.factors[name][0]]), torch.cat([right, other.factors[name][1]]))
                for name, (left, right) in self.factors.items()
            }
        )

    def inner(self, gradients: Gradients) -> Float[Tensor, "sample feature"]:
        """⟨∇, v_k⟩ summed over parameters. Cost: that of each gradient format's `inner`."""
        return torch.stack([gradients[name].inner(*pair) for name, pair in self.factors.items()]).sum(0)

    def gram(self, other: "LowRank | None" = None) -> Float[Tensor, "feature other"]:
        """⟨v_j, w_k⟩ = Σ_rr' (A_jr·A_kr')(B_jr·B_kr'), with itself by default; nothing of size |W| is built."""
        return torch.stack(
            [_gram(pair, (other or self).factors[name]) for name, pair in self.factors.items()],
        ).sum(0)

    def norm(self) -> Float[Tensor, " feature"]:
        """‖v_k‖ over all parameters."""
        squares = [
            (einsum(left, left, "f o r, f o s -> f r s") * einsum(right, right, "f i r, f i s -> f r s")).sum((1, 2))
            for left, right in self.factors.values()
        ]
        return torch.stack(squares).sum(0).clamp(min=0).sqrt()

    def materialize(self) -> dict[str, Float[Tensor, "feature d_out d_in"]]:
        """Dense matrices by parameter name. Cost: memory n_features · |W|."""
        return {
            name: einsum(left, right, "feature o rank, feature i rank -> feature o i")
            for name, (left, right) in self.factors.items()
        }

    @torch.no_grad()
    def scale_(self, factor: Float[Tensor, " feature"]) -> None:
        """Multiply each direction by a positive number in place, half of it on either factor."""
        for tensor in self.tensors:
            tensor.mul_(factor.sqrt()[:, None, None])


def _gram(ours: Factors, theirs: Factors) -> Float[Tensor, "feature other"]:
    (left, right), (other_left, other_right) = ours, theirs
    n_features, n_others = len(left), len(other_left)
    rank, other_rank = left.shape[2], other_left.shape[2]
    out = _columns(left).T @ _columns(other_left)
    into = _columns(right).T @ _columns(other_right)
    return (out * into).reshape(n_features, rank, n_others, other_rank).sum((1, 3))


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
