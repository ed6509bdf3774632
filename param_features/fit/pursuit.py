"""Orthogonal matching pursuit: the few features that rebuild a gradient together, found one at a time.

A linear encoder gives every feature that overlaps with a gradient a coordinate, so that near neighbours of the right feature
are kept beside it. Pursuit takes the feature with the largest overlap, rebuilds the gradient by least squares from those
taken so far, and goes on with what is left. It needs overlaps and the Gram matrix alone, never a gradient.

Most samples end far below the most features that one may take. What a sample reaches only falls from round to round, so that
one which fell below the threshold is left out of all further rounds; while the threshold is not known, what all samples
have reached so far bounds it from below.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.fit.selection import check_l0

_LEAST = 1e-3
"""A sample stops where the best feature's square, less what those taken span of it, is smaller: rounding would grow."""

_APART = 1.25
"""Samples that have come to their end are left out when there are so many times the rounds of the last time."""

_SOME, _BELOW = 2048, 0.8
"""Of many samples, so many tell the threshold well enough that few samples go on below such a share of it."""

_TRIANGLES = 2.6
"""Triangles that exist at once: of all samples, of those that go on, and of those that go on after these."""


def rounds_for(l0: float, n_features: int) -> int:
    """How many features one sample may keep where l0 is their mean: three times l0 and two, or all there are."""
    return min(n_features, 2 + round(3 * l0))


@dataclass(frozen=True)
class Path:
    """The order in which samples take features, which are made orthogonal to those taken before as they come.

    Attributes:
        features: Which feature is taken in each round.
        reach: |overlap| with what was left when it was taken; its running minimum, so that a threshold cuts once. Zero in
            the rounds that a sample does not take part in.
        basis: The orthonormal directions in terms of the features taken, one row a direction; lower triangular.
        along: The gradient's overlap with each of those directions.
        n_features: How many there are to take.
    """

    features: Int[Tensor, "sample round"]
    reach: Float[Tensor, "sample round"]
    basis: Float[Tensor, "sample round round"]
    along: Float[Tensor, "sample round"]
    n_features: int

    @classmethod
    def empty(cls, like: Float[Tensor, "sample feature"], n_rounds: int) -> "Path":
        """The path of samples that have taken no feature yet."""
        n_samples, n_features = like.shape
        reach, along = like.new_zeros(2, n_samples, n_rounds)
        features = torch.zeros(n_samples, n_rounds, dtype=torch.long, device=like.device)
        return cls(features, reach, like.new_zeros(n_samples, n_rounds, n_rounds), along, n_features)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that have one row for each sample."""
        return self.features, self.reach, self.basis, self.along

    def rows(self, index: Int[Tensor, " some"]) -> "Path":
        """The paths of some of the samples."""
        return Path(*(tensor.index_select(0, index) for tensor in self.tensors), self.n_features)  # type: ignore[arg-type]

    def put(self, index: Int[Tensor, " some"], other: "Path") -> None:
        """Take over what some of the samples have come to, in place."""
        for tensor, new in zip(self.tensors, other.tensors, strict=True):
            tensor.index_copy_(0, index, new)

    def threshold(self, l0: float) -> float:
        """The reach at or above which l0 features are taken per sample, on average over all samples."""
        check_l0(l0, self.n_features)
        return _threshold(self.reach, l0)

    def coords(self, threshold: float) -> Float[Tensor, "sample feature"]:
        """Coordinates by least squares of the features taken at or above the threshold; zero for all others."""
        taken = (self.reach >= threshold) & (self.reach > 0)
        solution = ((self.along * taken)[:, None] @ self.basis)[:, 0]
        return solution.new_zeros(len(solution), self.n_features).scatter_add_(1, self.features, solution)


@torch.no_grad()
def pursue(
    overlaps: Float[Tensor, "sample feature"],
    gram: Float[Tensor, "feature feature"],
    n_rounds: int,
    *,
    l0: float | None = None,
    least: float = 0.0,
) -> Path:
    """Take features for every sample, `n_rounds` at most.

    Cost: in round n, of every sample that takes part in it, n products with all features and n² more. Memory, beside the
    overlaps, as much again, and a triangle of the rounds for each sample.

    Args:
        overlaps: ⟨∇, v_k⟩ with unit-norm directions, in divergence units per unit step.
        gram: ⟨v_j, v_k⟩.
        n_rounds: At most the number of features.
        l0: Where the path is to be cut so that l0 features are kept per sample, what cannot be among these is left out:
            `threshold(l0)` and coordinates from there on are those of the whole path.
        least: A threshold below which nothing is wanted.

    Source: Pati, Rezaiifar and Krishnaprasad, "Orthogonal matching pursuit", 1993; by the Gram matrix alone, Rubinstein,
        Zibulevsky and Elad, "Efficient implementation of the K-SVD algorithm using batch orthogonal matching pursuit", 2008.
    """
    whole = active = Path.empty(overlaps, n_rounds)
    rows, left = torch.arange(len(overlaps), device=overlaps.device), overlaps.clone()
    reach, next_look = whole.reach.clone(), 1
    for n in range(n_rounds):
        _take(active, left, gram, n)
        reach[:, n].index_copy_(0, rows, active.reach[:, n])
        if n + 1 < next_look or n + 1 == n_rounds:
            continue
        next_look = math.ceil(_APART * (n + 2))
        floor = least if l0 is None else max(least, _threshold(reach, l0))
        goes_on = active.reach[:, n] >= max(floor, torch.finfo(left.dtype).tiny)
        if goes_on.all():
            continue
        going, ends = goes_on.nonzero()[:, 0], (~goes_on).nonzero()[:, 0]
        whole.put(rows[ends], active.rows(ends))
        rows, left, active = rows[going], left[going], active.rows(going)
    if active is not whole:
        whole.put(rows, active)
    return whole


@torch.no_grad()
def pursued_threshold(
    overlaps: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], n_rounds: int, l0: float
) -> float:
    """`pursue(…).threshold(l0)`, with the memory of the reach alone: of many samples, some tell where to stop first."""
    check_l0(l0, len(gram))
    some = overlaps[torch.linspace(0, len(overlaps) - 1, min(_SOME, len(overlaps)), dtype=torch.float64).long()]
    least = _BELOW * pursue(some, gram, n_rounds, l0=l0).threshold(l0)
    reach = torch.cat([pursue(chunk, gram, n_rounds, least=least).reach for chunk in overlaps.split(_SOME)])
    if int((reach >= least).sum()) < round(l0 * len(reach)):
        reach = torch.cat([pursue(chunk, gram, n_rounds).reach for chunk in overlaps.split(_SOME)])
    return _threshold(reach, l0)


def triangle_numbers(n_samples: int, n_rounds: int) -> float:
    """Numbers of the triangles that `pursue` makes of so many samples."""
    return _TRIANGLES * n_samples * n_rounds**2


def threshold_numbers(n_samples: int, n_rounds: int) -> float:
    """Numbers of the triangles that `pursued_threshold` makes, some samples at a time."""
    return triangle_numbers(min(n_samples, _SOME), n_rounds)


def _threshold(reach: Float[Tensor, "sample round"], l0: float) -> float:
    n_kept = min(max(1, round(l0 * len(reach))), reach.numel())
    return float(reach.flatten().kthvalue(reach.numel() - n_kept + 1).values)


def _take(path: Path, left: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], n: int) -> None:
    """Round n, in place: the best feature, made orthogonal to those before, and what is left of the overlaps without it."""
    reach, best = _largest(left)
    signed = left.gather(1, best[:, None])[:, 0]
    path.features[:, n] = best
    basis = path.basis[:, :n, :n]
    shared = gram.index_select(0, best).gather(1, path.features[:, :n])
    before = (basis @ shared[:, :, None])[:, :, 0]
    apart = 1 - before.square().sum(1)
    goes_on = (apart > _LEAST).to(left)
    size = goes_on / apart.clamp(min=_LEAST).sqrt()
    path.basis[:, n, :n] = -size[:, None] * (before[:, None] @ basis)[:, 0]
    path.basis[:, n, n] = size
    path.along[:, n] = signed * size
    reach *= goes_on
    path.reach[:, n] = torch.minimum(reach, path.reach[:, n - 1]) if n else reach
    weights = path.basis[:, n, : n + 1] * path.along[:, n, None]
    left -= nn.functional.embedding_bag(path.features[:, : n + 1], gram, per_sample_weights=weights, mode="sum")


def _largest(left: Float[Tensor, "sample feature"]) -> tuple[Float[Tensor, " sample"], Int[Tensor, " sample"]]:
    """Each sample's largest |overlap| and which it is, the first of equal ones.

    Two maxima without places cost a third of one with them, for which torch has no vector instructions.
    """
    sizes, n_features = left.abs(), left.shape[1]
    largest = sizes.amax(1)
    from_the_end = torch.arange(n_features, 0, -1, dtype=left.dtype, device=left.device)
    places = sizes.eq_(largest[:, None]).mul_(from_the_end).amax(1)
    return largest, (n_features - places).clamp_(max=n_features - 1).long()
