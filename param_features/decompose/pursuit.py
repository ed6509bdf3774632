"""Orthogonal matching pursuit: the few features that rebuild a gradient together, found one at a time.

A linear encoder gives every feature that overlaps with a gradient a coordinate, so that near neighbours of the right feature
are kept beside it. Pursuit takes the feature with the largest overlap, rebuilds the gradient by least squares from those
taken so far, and goes on with what is left. It needs overlaps and the Gram matrix alone, never a gradient.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.decompose.selection import check_l0

_CHUNK = 1024
_LEAST = 1e-3
"""A sample stops where the best feature's square, less what those taken span of it, is smaller: rounding would grow."""


def rounds_for(l0: float, n_features: int) -> int:
    """How many features one sample may keep where l0 is their mean: three times l0 and two, or all there are."""
    return min(n_features, 2 + round(3 * l0))


@dataclass(frozen=True)
class Path:
    """The order in which samples take features, which are made orthogonal to those taken before as they come.

    Attributes:
        features: Which feature is taken in each round.
        reach: |overlap| with what was left when it was taken; its running minimum, so that a threshold cuts once.
        triangle: The features taken in terms of the orthonormal directions that they lead to, one column a feature.
        along: The gradient's overlap with each of those directions.
        n_features: How many there are to take.
    """

    features: Int[Tensor, "sample round"]
    reach: Float[Tensor, "sample round"]
    triangle: Float[Tensor, "sample round round"]
    along: Float[Tensor, "sample round"]
    n_features: int

    def threshold(self, l0: float) -> float:
        """The reach at or above which l0 features are taken per sample, on average over all samples."""
        check_l0(l0, self.n_features)
        return _threshold(self.reach, l0)

    def coords(self, threshold: float) -> Float[Tensor, "sample feature"]:
        """Coordinates by least squares of the features taken at or above the threshold; zero for all others.

        Cost: one triangular system of at most the number of rounds per sample.
        """
        taken = (self.reach >= threshold) & (self.reach > 0)
        unit = torch.eye(taken.shape[1]).to(self.triangle)
        triangle = torch.where(taken[:, :, None] & taken[:, None, :], self.triangle, unit)
        solution = torch.linalg.solve_triangular(triangle, (self.along * taken)[:, :, None], upper=True)[:, :, 0]
        return solution.new_zeros(len(solution), self.n_features).scatter_add(1, self.features, solution)


@torch.no_grad()
def pursue(overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], n_rounds: int) -> Path:
    """Take `n_rounds` features for every sample.

    Cost: in round n, n products of samples with features; memory, n_rounds times a thousand samples' overlaps.

    Args:
        overlaps: ⟨∇, v_k⟩ with unit-norm directions, in divergence units per unit step.
        gram: ⟨v_j, v_k⟩.
        n_rounds: At most the number of features.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit", 1993; by the Gram matrix alone, Rubinstein,
        Zibulevsky and Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal matching pursuit", 2008.
    """
    parts = [_pursue_chunk(chunk, gram, n_rounds) for chunk in overlaps.split(_CHUNK)]
    features, reach, triangle, along = (torch.cat(part) for part in zip(*parts, strict=True))
    return Path(features, reach, triangle, along, len(gram))


@torch.no_grad()
def pursued_threshold(
    overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], n_rounds: int, l0: float
) -> float:
    """`pursue(…).threshold(l0)`, with the memory of the reach alone."""
    check_l0(l0, len(gram))
    reach = [_pursue_chunk(chunk, gram, n_rounds)[1] for chunk in overlaps.split(_CHUNK)]
    return _threshold(torch.cat(reach), l0)


def _threshold(reach: Float[Tensor, "sample round"], l0: float) -> float:
    n_kept = min(max(1, round(l0 * len(reach))), reach.numel())
    return float(reach.flatten().topk(n_kept, sorted=False).values.min())


def _pursue_chunk(overlaps: Tensor, gram: Tensor, n_rounds: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gram-Schmidt on the features taken: `basis` holds the overlaps of each orthonormal direction with every feature."""
    n_samples, n_features = overlaps.shape
    samples = torch.arange(n_samples, device=overlaps.device)
    basis = overlaps.new_zeros(n_samples, n_rounds, n_features)
    triangle, along = overlaps.new_zeros(n_samples, n_rounds, n_rounds), overlaps.new_zeros(n_samples, n_rounds)
    features = torch.zeros(n_samples, n_rounds, dtype=torch.long, device=overlaps.device)
    reach, left = torch.empty_like(along), overlaps.clone()
    free = torch.ones_like(overlaps)
    for n in range(n_rounds):
        reach[:, n], best = (left.abs() * free).max(1)
        before = basis[samples, :n, best]
        apart = 1 - before.square().sum(1)
        goes_on, apart = (apart > _LEAST).to(left), apart.clamp(min=_LEAST).sqrt()
        reach[:, n] *= goes_on
        new = torch.baddbmm(gram[best][:, None], before[:, None], basis[:, :n], alpha=-1)[:, 0] * (goes_on / apart)[:, None]
        step = left[samples, best] * goes_on / apart
        left -= step[:, None] * new
        basis[:, n], features[:, n], along[:, n] = new, best, step
        triangle[:, :n, n], triangle[:, n, n] = before, apart
        free[samples, best] = 0
    return features, reach.cummin(1).values, triangle, along
