"""Do components of a toy's matrices equal the rank-1 parts that its matrices are known to be made of?"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.measure import match_directions

Parts = tuple[Float[Tensor, "part d_out"], Float[Tensor, "part d_in"]]
"""Rank-1 parts of one matrix: part c is left_c ⊗ right_c."""

MATCHED = 0.95
"""A true part counts as found where its partner's |cosine| is above this."""

_WRONG_BY = 0.1
_NOTHING = 1e-30


@dataclass(frozen=True, eq=False)
class PartScores:
    """How well parts of one matrix match the true ones, paired one to one by |cosine| of whole rank-1 matrices.

    Attributes:
        cosine: |cosine| of each true part with its partner, 0 without one.
        norm_ratio: Norm of each true part's partner over its own norm, 0 without a partner.
        published_mmcs: Mean over true parts of the largest |cosine| of its shorter factor alone with the same rows or
            columns of any part's matrix. Not one to one, and blind to the other factor: 20 random parts score 0.98 on 5
            features in 2 hidden units, so it tells nothing there.
    """

    cosine: Float[Tensor, " true"]
    norm_ratio: Float[Tensor, " true"]
    published_mmcs: float

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, flat, for tables."""
        return {
            "ml2r": float(self.norm_ratio.mean()),
            "mean cosine": float(self.cosine.mean()),
            "min cosine": float(self.cosine.min()),
            "matched": float((self.cosine > MATCHED).sum()),
            "published mmcs": self.published_mmcs,
        }


@torch.no_grad()
def score_parts(truth: Parts, parts: Parts) -> PartScores:
    """Pair true parts with the given ones, one to one, so that the sum of |cosine| of whole matrices is largest.

    Args:
        truth: The true parts, of norm above 0.
        parts: Any number of parts of the same matrix.

    Source: ML2R and MMCS as SPD (arXiv 2506.20790) has them, from APD (2501.14926). Differs: SPD takes the best part of each
    column for both, this one partner for each true part, and cosines of whole matrices; `published_mmcs` is SPD's.
    """
    ours, theirs = _rank_one(truth), _rank_one(parts)
    matched = match_directions(ours, theirs, torch.Generator())
    true, found = matched.pairs.T
    cosine, ratio = torch.zeros(len(truth[0])), torch.zeros(len(truth[0]))
    cosine[true] = matched.cosine.abs().float()
    ratio[true] = (theirs.norm()[found] / ours.norm()[true]).float()
    return PartScores(cosine, ratio, _published_mmcs(truth, parts))


def seen(parts: Parts, directions: Float[Tensor, "direction d_in"] | None) -> Parts:
    """Parts as they act on inputs that are sums of given directions: left ⊗ (directions · right)."""
    return parts if directions is None else (parts[0], parts[1] @ directions.T)


def random_parts(parts: Parts, generator: torch.Generator) -> Parts:
    """As many Gaussian rank-1 parts, each of the mean norm of the given ones: the control."""
    left, right = (torch.randn(factor.shape, generator=generator) for factor in parts)
    norms = [side.norm(dim=1, keepdim=True) for side in (left, right)]
    size = (parts[0].norm(dim=1) * parts[1].norm(dim=1)).mean()
    return left / norms[0] * size, right / norms[1]


def singular_parts(matrix: Float[Tensor, "d_out d_in"], n_parts: int) -> Parts:
    """The leading rank-1 parts of a matrix's singular value decomposition, at most `n_parts`: the other control."""
    left, values, right = torch.linalg.svd(matrix.detach(), full_matrices=False)
    return (left * values).T[:n_parts].contiguous(), right[:n_parts].contiguous()


def single_feature_numbers(importances: Float[Tensor, "input part"]) -> dict[str, float]:
    """How many parts inputs with one feature each need, and how far importance is from one part of its own for each.

    `identity errors` are importances below 0.9, for the part that is an input's own, or above 0.1, for all others; the own
    parts are those with the largest sum of importances, one to one.

    Args:
        importances: In [0, 1], of the parts of one matrix on one input for each feature.
    """
    from scipy.optimize import linear_sum_assignment

    rows, columns = map(torch.as_tensor, linear_sum_assignment(importances.numpy(), maximize=True))
    wanted = torch.zeros_like(importances)
    wanted[rows, columns] = 1
    return {
        "l0": float((importances > 0).float().sum(1).mean()),
        "l0 above 0.1": float((importances > _WRONG_BY).float().sum(1).mean()),
        "identity errors": float(((importances - wanted).abs() > _WRONG_BY).sum()),
    }


def score_by_matrix(
    truth: Mapping[str, Parts], parts: Mapping[str, Parts], directions: Mapping[str, Tensor]
) -> dict[str, PartScores]:
    """`score_parts` for every matrix whose true parts are known, read as they act on its `directions` where it has some."""
    return {name: score_parts(true, seen(parts[name], directions.get(name))) for name, true in truth.items()}


def _rank_one(parts: Parts) -> LowRank:
    left, right = (factor.detach().double().cpu().unsqueeze(2) for factor in parts)
    return LowRank({"matrix": (left, right)})


def _published_mmcs(truth: Parts, parts: Parts) -> float:
    """A part's matrix times the longer factor of a true part is a multiple of the part's own shorter factor."""
    side = 0 if truth[0].shape[1] <= truth[1].shape[1] else 1
    true, found = (
        torch.nn.functional.normalize(each[side].detach().double(), dim=1, eps=_NOTHING) for each in (truth, parts)
    )
    return float((true @ found.T).abs().max(1).values.mean())
