"""Orthogonal matching pursuit: the few features that rebuild a gradient together, found one at a time.

A linear encoder gives every feature that overlaps with a gradient a coordinate, so that near neighbours of the right feature
are kept beside it. Pursuit takes the feature with the largest overlap, rebuilds the gradient by least squares from those
taken so far, and goes on with what is left. It needs overlaps and the Gram matrix alone, never a gradient.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.decompose.reconstruction import times
from param_features.decompose.selection import check_l0
from param_features.gradients.sparse import is_fast_on

_CHUNK = 4096
_RIDGE = 1e-4
"""Added to the Gram matrix's diagonal, which is 1, so that two equal features do not make it singular."""


def rounds_for(l0: float, n_features: int) -> int:
    """How many features one sample may keep where l0 is their mean: three times l0 and two, or all there are."""
    return min(n_features, 2 + round(3 * l0))


@dataclass(frozen=True)
class Path:
    """The order in which samples take features.

    Attributes:
        features: Which feature is taken in each round.
        reach: |overlap| with what was left when it was taken; its running minimum, so that a threshold cuts once.
        solutions: Coordinates of the features taken so far, after each round; zero beyond.
        n_features: How many there are to take.
    """

    features: Int[Tensor, "sample round"]
    reach: Float[Tensor, "sample round"]
    solutions: Float[Tensor, "sample round round"]
    n_features: int

    def threshold(self, l0: float) -> float:
        """The reach at or above which l0 features are taken per sample, on average over all samples."""
        check_l0(l0, self.n_features)
        n_kept = min(max(1, round(l0 * len(self.reach))), self.reach.numel())
        return float(self.reach.flatten().topk(n_kept, sorted=False).values.min())

    def coords(self, threshold: float) -> Float[Tensor, "sample feature"]:
        """Coordinates by least squares of the features taken at or above the threshold; zero for all others."""
        depth = (self.reach >= threshold).sum(1)
        last = (depth - 1).clamp(min=0)[:, None, None].expand(-1, 1, self.solutions.shape[2])
        solution = self.solutions.gather(1, last)[:, 0] * (depth > 0)[:, None]
        return solution.new_zeros(len(solution), self.n_features).scatter_add(1, self.features, solution)


@torch.no_grad()
def pursue(overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], n_rounds: int) -> Path:
    """Take `n_rounds` features for every sample.

    Cost: each round, a product of the Gram matrix with as many rows per sample as were taken, and a least-squares system of
    that size. Memory beside the result: a few times 4,096 samples' overlaps.

    Args:
        overlaps: ⟨∇, v_k⟩ with unit-norm directions, in divergence units per unit step.
        gram: ⟨v_j, v_k⟩.
        n_rounds: At most the number of features.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit", 1993; by the Gram matrix alone, Rubinstein,
        Zibulevsky and Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal matching pursuit", 2008.
    """
    parts = [_pursue_chunk(chunk, gram, n_rounds) for chunk in overlaps.split(_CHUNK)]
    features, reach, solutions = (torch.cat(part) for part in zip(*parts, strict=True))
    return Path(features, reach, solutions, len(gram))


def _pursue_chunk(overlaps: Tensor, gram: Tensor, n_rounds: int) -> tuple[Tensor, Tensor, Tensor]:
    is_sparse = is_fast_on(overlaps.device)
    n_samples = len(overlaps)
    taken = torch.zeros(n_samples, 0, dtype=torch.long, device=overlaps.device)
    reach, solutions = overlaps.new_zeros(n_samples, n_rounds), overlaps.new_zeros(n_samples, n_rounds, n_rounds)
    left = overlaps
    for n in range(n_rounds):
        reach[:, n], best = left.abs().scatter(1, taken, -1.0).max(1)
        taken = torch.cat([taken, best.unsqueeze(1)], 1)
        among = gram[taken[:, :, None], taken[:, None, :]] + _RIDGE * torch.eye(n + 1).to(gram)
        solution = torch.linalg.solve(among, overlaps.gather(1, taken))
        solutions[:, n, : n + 1] = solution
        if n + 1 < n_rounds:
            left = overlaps - times(torch.zeros_like(overlaps).scatter(1, taken, solution), gram, is_sparse=is_sparse)
    return taken, reach.cummin(1).values, solutions
