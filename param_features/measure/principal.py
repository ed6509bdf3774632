"""Principal directions of gradients that are too many times too large to hold: a slice of the parameters at a time.

A principal direction is a combination of samples' gradients, V = C Uᵀ G with G [sample, n_params], so it is known by its
weights U [sample, direction] alone. What a slice of V's columns adds to overlaps and to the Gram matrix is summed as the
slices go by; nothing of size n_features · |W| ever exists.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit import strong_samples
from param_features.fit.formats import LowRank, n_numbers
from param_features.gradients import Factored, SampleGradients

EXTRA = 10
"""Directions beyond those asked for, so that the last of these are found as well as the first."""

_PROBES = 8
"""Probes per direction."""

_MOST_PROBES = 2**13
_MOMENT = 4
"""Samples per probe that the probes' leading combinations are learned from."""

_MOST_WEIGHTS = 2**27
_SLICE_NUMBERS = 2**27
_CHUNK_NUMBERS = 2**25
_PART = 4096

Slice = tuple[str, Int[Tensor, " d_out"]]
"""A parameter, and some rows of its matrix."""


@dataclass(frozen=True)
class SlicedPrincipal:
    """Leading eigenvectors of Σ ∇∇ᵀ, not centred, known by what they do to stores of gradients.

    Attributes:
        train: The gradients whose principal directions they are.
        weights: U, orthonormal columns: which combinations of them span the directions.
        n_features: How many directions.
    """

    train: SampleGradients
    weights: Float[Tensor, "sample direction"]
    n_features: int

    def on(self, store: SampleGradients) -> tuple[Float[Tensor, "sample feature"], Float[Tensor, "feature feature"]]:
        """Overlaps of gradients with the directions, and the directions' Gram matrix.

        Cost: 2 · direction · |W| for every sample of `train` and every one of `store`, which are read once a slice.
        """
        overlaps, gram = _projected(self.train, self.weights, store)
        mix = _whitening(gram)[:, : self.n_features]
        return overlaps @ mix, mix.T @ gram @ mix


@torch.no_grad()
def sliced_principal(
    train: SampleGradients, n_features: int, generator: torch.Generator, *, n_rounds: int = 1
) -> SlicedPrincipal:
    """Principal directions by randomised projection, whose range is then improved by block power iteration.

    The probes that gradients are first projected on are rank-1 parts of single gradients: they lie where gradients do, and
    cost what features cost. Cost: overlaps with 8 probes a direction, of up to 8,192; then each round two products of every
    sample with every direction. Memory: U and as much again, at most 1 GiB together, a slice of 512 MiB, and a matrix of
    probes by probes. Of more than 2²⁷ / n_features samples that many are taken, spread evenly.

    Args:
        train: Training gradients.
        n_features: Number of directions; at most the number of samples.
        generator: Chooses the probes.
        n_rounds: Rounds of power iteration.

    Source: Halko, Martinsson and Tropp, "Finding structure with randomness", 2011, algorithms 4.4 and 5.1.
    """
    train = train.spread(_MOST_WEIGHTS // (n_features + EXTRA))
    n_directions = min(n_features + EXTRA, train.n_samples)
    weights = _probed(train, _probes(train, _n_probes(n_directions, train.n_samples), generator), n_directions)
    for _ in range(n_rounds):
        overlaps, _ = _projected(train, weights, train)
        weights = _mixed(overlaps, _whitening(_moment(overlaps)))
    return SlicedPrincipal(train, weights, n_features)


def sliced_bytes(n_features: int, n_samples: int) -> int:
    """Most memory that the directions take at a time, in bytes, beside the pieces of gradients that are read."""
    n_directions = n_features + EXTRA
    n_probes = _n_probes(n_directions, n_samples)
    weights = 4 * min(n_samples * n_directions, _MOST_WEIGHTS)
    return max(28 * n_probes**2, 2 * weights + 4 * _SLICE_NUMBERS + 4 * _CHUNK_NUMBERS)


def _n_probes(n_directions: int, n_samples: int) -> int:
    return min(max(min(_PROBES * n_directions, _MOST_PROBES), 2 * n_directions), n_samples)


def _probes(train: SampleGradients, n: int, generator: torch.Generator) -> LowRank:
    """Rank-1 parts of strong samples' gradients, near the leading ones: three steps of power iteration each."""
    index = strong_samples(train, n, generator)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for some in index.split(_chunk_size(train)):
        for name, gradient in train.rows(some).items():
            matrix = gradient.dense().matrix
            left = torch.randn(matrix.shape[1], dtype=torch.float32, generator=generator).to(matrix).expand(len(matrix), -1)
            right = left[:, :0]
            for _ in range(3):
                right = torch.nn.functional.normalize(einsum(matrix, left, "s o i, s o -> s i"), dim=1)
                left = einsum(matrix, right, "s o i, s i -> s o")
            parts.setdefault(name, []).append((left, right))
    factors = {
        name: tuple(torch.cat(side)[:, :, None] for side in zip(*pairs, strict=True)) for name, pairs in parts.items()
    }
    probes = LowRank(factors)  # type: ignore[arg-type]
    probes.balance_()
    probes.scale_(1 / probes.norm().clamp(min=1e-12))
    return probes


def _probed(train: SampleGradients, probes: LowRank, n_directions: int) -> Float[Tensor, "sample direction"]:
    """The leading left singular vectors of the samples' overlaps with the probes; these are never kept.

    Which combinations of probes lead is learned from four samples a probe; the weights are then orthonormal but for that.
    """
    import scipy.linalg  # costs a good part of what importing this library does

    n = probes.n_features
    moment = torch.zeros(n, n, dtype=torch.float64)
    for chunk in train.spread(_MOMENT * n).chunks():
        overlaps = probes.inner(chunk)
        moment += (overlaps.T @ overlaps).cpu()
    values, vectors = scipy.linalg.eigh(moment.numpy(), subset_by_index=(n - n_directions, n - 1), overwrite_a=True)
    scale = torch.from_numpy(values).clamp(min=_least(values[-1])).rsqrt()
    mix = (torch.from_numpy(vectors) * scale).flip(1).to(train.square_norm())
    return torch.cat([probes.inner(chunk) @ mix for chunk in train.chunks()])


def _projected(
    train: SampleGradients, weights: Float[Tensor, "sample direction"], store: SampleGradients
) -> tuple[Float[Tensor, "other direction"], Float[Tensor, "direction direction"]]:
    """Overlaps of a store's gradients with Uᵀ G, and the Gram matrix of its rows."""
    n_directions = weights.shape[1]
    overlaps, gram = weights.new_zeros(store.n_samples, n_directions), weights.new_zeros(n_directions, n_directions)
    for piece, n_columns in _slices(train, n_directions):
        size = max(16, _CHUNK_NUMBERS // n_columns)
        rows = weights.new_zeros(n_directions, n_columns)
        for some, part in _pieces(train, piece, size):
            rows.addmm_(weights[some].T, part)
        gram += rows @ rows.T
        for some, part in _pieces(store, piece, size):
            overlaps[some] += part @ rows.T
    return overlaps, gram


def _slices(store: SampleGradients, n_directions: int) -> Iterator[tuple[Slice, int]]:
    """Rows of each parameter's matrix whose directions stay below 512 MiB, and the numbers that they hold."""
    for name, gradient in store.rows(slice(0, 1)).items():
        d_out, d_in = gradient.matrix_shape
        n_rows = max(1, _SLICE_NUMBERS // (n_directions * d_in))
        for index in torch.arange(d_out, device=gradient.tensors[0].device).split(n_rows):
            yield (name, index), len(index) * d_in


def _pieces(store: SampleGradients, piece: Slice, size: int) -> Iterator[tuple[slice, Float[Tensor, "sample column"]]]:
    """A slice of every sample's gradient, dense, some samples at a time; the next overwrites those before.

    Fresh memory for every piece would cost three times what filling it does.
    """
    name, index = piece
    room = torch.empty(0)
    for start in range(0, store.n_samples, size):
        some = slice(start, min(start + size, store.n_samples))
        gradient = store.rows(some)[name].rows(index)
        if not isinstance(gradient, Factored):
            yield some, gradient.dense().matrix.flatten(1)
            continue
        n, n_rows, d_in = gradient.n_samples, *gradient.matrix_shape
        room = room if len(room) else gradient.delta.new_empty(n, n_rows, d_in)
        yield some, torch.bmm(gradient.delta.mT, gradient.inputs, out=room[:n]).flatten(1)


def _moment(rows: Float[Tensor, "sample direction"]) -> Float[Tensor, "direction direction"]:
    return torch.stack([part.double().T @ part.double() for part in rows.split(_PART)]).sum(0)


def _mixed(rows: Float[Tensor, "sample direction"], mix: Float[Tensor, "direction direction"]) -> Tensor:
    """`rows @ mix`, in place."""
    for part in rows.split(_PART):
        part.copy_(part @ mix.to(part))
    return rows


def _whitening(gram: Float[Tensor, "direction direction"]) -> Float[Tensor, "direction direction"]:
    """Combinations that make rows of this Gram matrix orthonormal, those with the largest eigenvalues first."""
    values, vectors = torch.linalg.eigh(gram.double())
    return (vectors * values.clamp(min=_least(float(values[-1]))).rsqrt()).flip(1).to(gram)


def _least(largest: float) -> float:
    """Below this an eigenvalue is rounding, and its direction is left near zero."""
    return max(1e-10 * largest, torch.finfo(torch.float64).tiny)


def _chunk_size(store: SampleGradients) -> int:
    return max(1, _CHUNK_NUMBERS // n_numbers(store.rows(slice(0, 1))))
