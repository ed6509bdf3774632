"""Which of two sets of features go together on the same samples: correlation, area under ROC, overlap of top samples.

Strengths are [sample feature], at least 0: how much a feature says at a sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.machine import typed
from param_features.measure.ranking import auroc

_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True, eq=False)
class Counterparts:
    """Every pair of two sets' features, [feature other].

    Attributes:
        correlation: Pearson's, of the strengths; 0 where one of the two is constant.
        auroc: How well the other's strength ranks the feature's top samples above the rest: area under ROC, 0.5 by chance;
            NaN for a feature without top samples.
        reverse_auroc: How well the feature's strength ranks the other's top samples.
        overlap: Jaccard overlap of their top samples, 0 to 1.
    """

    correlation: Float[Tensor, "feature other"]
    auroc: Float[Tensor, "feature other"]
    reverse_auroc: Float[Tensor, "feature other"]
    overlap: Float[Tensor, "feature other"]


@typed
@torch.no_grad()
def counterparts(
    ours: Float[Tensor, "sample feature"], theirs: Float[Tensor, "sample other"], *, n_top: int
) -> Counterparts:
    """Compare every feature of one set with every feature of another.

    Cost: a product [feature sample] · [sample other] for each number, and a ranking of every feature of either set: about a
    minute for 100 features, 24,576 others and 13,000 samples. Memory, beyond the two sets: 16 bytes a pair, and about 1 GiB.

    Args:
        ours: Strengths, dense.
        theirs: Strengths on the same samples, dense or sparse in the COO layout.
        n_top: How many of its strongest samples stand for a feature.
    """
    standard, own_top = standardised(ours), top_samples(ours, n_top)
    columns = []
    for chunk in feature_chunks(theirs):
        top = top_samples(chunk, n_top)
        correlation = (standard.T @ standardised(chunk)).to(ours.dtype)
        areas = auroc(chunk, own_top).to(ours.dtype), auroc(ours, top).T
        columns.append((correlation, *areas, overlaps(own_top, top).to(ours.dtype)))
    return Counterparts(*(torch.cat(parts, 1) for parts in zip(*columns, strict=True)))


@typed
@torch.no_grad()
def correlation_table(
    ours: Float[Tensor, "sample feature"], theirs: Float[Tensor, "sample other"]
) -> Float[Tensor, "feature other"]:
    """Pearson correlation alone, as in `counterparts`."""
    standard = standardised(ours)
    return torch.cat([(standard.T @ standardised(chunk)).to(ours.dtype) for chunk in feature_chunks(theirs)], 1)


def standardised(columns: Float[Tensor, "sample feature"]) -> Float[Tensor, "sample feature"]:
    """In float64, with mean 0 and norm 1 over samples; 0 for constants."""
    values = columns.double()
    centred = values - values.mean(0)
    norm = centred.norm(dim=0)
    return centred / torch.where(norm <= 1e-9 * values.norm(dim=0), torch.inf, norm)


def top_samples(strengths: Float[Tensor, "sample feature"], n: int) -> Bool[Tensor, "sample feature"]:
    """Where each feature's n largest strengths lie; ties with the last of them are in, zeros never."""
    least = strengths.topk(min(n, len(strengths)), dim=0).values[-1]
    return (strengths >= least) & (strengths > 0)


def overlaps(ours: Bool[Tensor, "sample feature"], theirs: Bool[Tensor, "sample other"]) -> Float[Tensor, "feature other"]:
    """Jaccard overlap of every pair's sets of samples; 0 where both are empty."""
    shared = ours.float().T @ theirs.float()
    return shared / (ours.sum(0)[:, None] + theirs.sum(0) - shared).clamp(min=1)


def feature_chunks(strengths: Float[Tensor, "sample feature"]) -> Iterator[Float[Tensor, "sample chunk"]]:
    """A few features at a time, dense, below 64 MiB in float32."""
    n_samples, n_features = strengths.shape
    size = max(1, _CHUNK_NUMBERS // max(1, n_samples))
    for start in range(0, n_features, size):
        width = min(size, n_features - start)
        sparse = strengths.is_sparse
        yield strengths.narrow_copy(1, start, width).to_dense() if sparse else strengths[:, start : start + width]
