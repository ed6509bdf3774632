"""Controls: dictionaries that cost nothing to find. Features that one of them matches have shown nothing.

Each is scored as the fit is: same number of directions, same l0, same held-out samples, batch top-k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit import Encoder, batch_top_k, most_samples, reconstruction_error, rounds_for, square_errors
from param_features.fit.formats import LowRank, n_numbers
from param_features.gradients import Gradients, SampleGradients, flatten
from param_features.machine import typed
from param_features.measure.principal import EXTRA, SlicedPrincipal, sliced_bytes, sliced_principal
from param_features.params import ParamSubset

SampleErrors = tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]
"""‖∇ − reconstruction‖² and ‖∇‖² of each sample."""

_EXACT_UP_TO, _DENSE_UP_TO = 4096, 512
_CHUNK_NUMBERS = 2**25
_DENSE_NUMBERS = 2**26
"""Principal directions of more numbers than this are never held."""


@dataclass(frozen=True)
class ControlDictionary:
    """Unit-norm directions known by what they do to gradients.

    Attributes:
        overlaps: Gradients to ⟨∇, v_k⟩, [sample feature].
        gram: ⟨v_j, v_k⟩.
    """

    overlaps: Callable[[Gradients], Tensor]
    gram: Float[Tensor, "feature feature"]

    @classmethod
    def of(cls, directions: LowRank) -> "ControlDictionary":
        """Make a control of low-rank directions, scaled to unit norm."""
        norm = directions.norm().clamp(min=1e-12)
        return cls(lambda gradients: directions.inner(gradients) / norm, directions.gram() / norm / norm[:, None])

    @classmethod
    def of_rows(cls, rows: Float[Tensor, "feature n_params"]) -> "ControlDictionary":
        """Make a control of dense unit-norm rows."""
        return cls(lambda gradients: flatten(gradients) @ rows.T, rows @ rows.T)

    @property
    def n_features(self) -> int:
        """How many directions there are."""
        return len(self.gram)

    def on(self, store: SampleGradients) -> tuple[Float[Tensor, "sample feature"], Float[Tensor, "feature feature"]]:
        """Read a store: its gradients' overlaps with the directions, and the directions' Gram matrix."""
        size = dense_together(n_numbers(store.rows(slice(0, 1))))
        return torch.cat([self.overlaps(chunk) for chunk in store.chunks(size)]), self.gram


@typed
@torch.no_grad()
def control_errors(
    train: SampleGradients,
    held_out: SampleGradients,
    subset: ParamSubset,
    *,
    n_features: int,
    rank: int,
    l0: float,
    generator: torch.Generator,
    is_pursued: bool = False,
) -> dict[str, SampleErrors]:
    """Each held-out sample's square error and square norm by three controls, by pursuit as well where the fit's are.

    Returns:
        `control_pca`: leading principal directions of the training gradients (dense, not low rank: an advantage);
        `control_random`: random directions of the fit's rank; `control_svd_w`: leading singular directions of W.
    """
    dictionaries = control_dictionaries(train, subset, n_features=n_features, rank=rank, generator=generator)
    return {
        name: sample_errors(dictionary, held_out, [l0], is_pursued=is_pursued)[0]
        for name, dictionary in dictionaries.items()
    }


def control_dictionaries(
    train: SampleGradients, subset: ParamSubset, *, n_features: int, rank: int, generator: torch.Generator
) -> dict[str, ControlDictionary | SlicedPrincipal]:
    """The three controls by name, as `control_errors` describes them."""
    like = train.rows(slice(0, 1))
    return {
        "control_pca": principal_dictionary(train, n_features, generator),
        "control_random": ControlDictionary.of(random_directions(like, n_features, rank, generator)),
        "control_svd_w": ControlDictionary.of(singular_directions(subset, n_features)),
    }


def control_bytes(
    shapes: Mapping[str, tuple[int, int]], *, n_features: int, n_samples: int, n_held_out: int, is_pursued: bool = True
) -> int:
    """Most memory that `control_errors` takes at a time, in bytes, beside the gradients that are in memory already.

    Args:
        shapes: (d_out, d_in) of each parameter's matrix.
        n_features: Number of directions.
        n_samples: Training samples.
        n_held_out: Samples that errors are measured on.
        is_pursued: Whether the fit encodes by pursuit, with l0 = n_features / 20.
    """
    n_params = sum(d_out * d_in for d_out, d_in in shapes.values())
    chunk = 4 * min(n_samples, dense_together(n_params)) * n_params
    if n_params <= _EXACT_UP_TO:
        finding = 3 * 8 * n_params**2 + chunk
    elif n_features * n_params <= _DENSE_NUMBERS:
        finding = 5 * 4 * (n_features + EXTRA) * n_params + chunk
    else:
        finding = sliced_bytes(n_features, n_samples)
    rounds = rounds_for(max(1, n_features / 20), n_features) if is_pursued else 0
    n_scored = min(n_held_out, most_samples(n_features))
    scoring = 4 * n_features * (6 * n_scored + min(n_scored, 1024) * rounds) + chunk
    return max(finding, scoring)


@typed
def dictionary_error(
    dictionary: ControlDictionary | SlicedPrincipal, store: SampleGradients, l0: float, *, is_pursued: bool = False
) -> float:
    """Reconstruction error of a control at one l0, by the best of the encoders that `dictionary_errors` tries."""
    return dictionary_errors(dictionary, store, [l0], is_pursued=is_pursued)[0]


@typed
def dictionary_errors(
    dictionary: ControlDictionary | SlicedPrincipal,
    store: SampleGradients,
    l0s: Sequence[float],
    *,
    is_pursued: bool = False,
) -> list[float]:
    """At each l0 the reconstruction error of what `sample_errors` gives."""
    return [reconstruction_error(*of) for of in sample_errors(dictionary, store, l0s, is_pursued=is_pursued)]


def sample_errors(
    dictionary: ControlDictionary | SlicedPrincipal,
    store: SampleGradients,
    l0s: Sequence[float],
    *,
    is_pursued: bool = False,
) -> list[SampleErrors]:
    """At each l0 every sample's square error and square norm, by the encoder whose errors' sum is the lowest.

    There are two or three: the overlaps, least squares over all directions, or pursuit. They agree for orthogonal
    directions; a control must not lose for want of an encoder. Of many samples it takes those that a fit of as many features
    is measured on.
    """
    store = store.spread(most_samples(dictionary.n_features))
    overlaps, gram = dictionary.on(store)
    square_norm = store.square_norm()

    def codes(l0: float) -> Iterator[Tensor]:
        yield overlaps * batch_top_k(overlaps, l0)
        solved = overlaps @ torch.linalg.pinv(gram.double(), hermitian=True, rtol=1e-6).to(overlaps)
        yield solved * batch_top_k(solved, l0)
        if is_pursued:
            yield Encoder(rounds_for(l0, len(gram))).kept(overlaps, gram, l0)[0]

    def errors(l0: float) -> Iterator[tuple[Tensor, Tensor]]:
        for kept in codes(min(l0, len(gram))):
            yield square_errors(kept, overlaps, gram, square_norm), square_norm

    return [min(errors(l0), key=lambda of: reconstruction_error(*of)) for l0 in l0s]


def principal_dictionary(
    train: SampleGradients, n_features: int, generator: torch.Generator
) -> ControlDictionary | SlicedPrincipal:
    """The principal directions, as dense rows of up to 2²⁶ numbers together, and beyond by slices of the parameters.

    The two ways' held-out errors are within 0.003 of each other (`benchmarks/store.py principal`).
    """
    n_params = n_numbers(train.rows(slice(0, 1)))
    if n_params > _EXACT_UP_TO and n_features * n_params > _DENSE_NUMBERS:
        return sliced_principal(train, n_features, generator)
    return ControlDictionary.of_rows(principal_directions(train, n_features, generator))


@typed
def principal_directions(
    store: SampleGradients, n_features: int, generator: torch.Generator
) -> Float[Tensor, "feature n_params"]:
    """Leading eigenvectors of Σ ∇∇ᵀ, not centred, as dense orthonormal rows.

    Cost: the leading eigenvectors of |W| × |W| up to 4,096 parameters; six passes over the samples beyond (block power
    iteration with ten extra directions). Memory: n_features · |W|.
    """
    n_params = n_numbers(store.rows(slice(0, 1)))
    n_kept, chunk = min(n_features, n_params), dense_together(n_params)
    if n_params <= _EXACT_UP_TO:
        moment = torch.zeros(n_params, n_params, dtype=torch.float64, device=store.square_norm().device)
        for rows in map(flatten, store.chunks(chunk)):
            moment += rows.T @ rows
        return leading_eigenvectors(moment, n_kept).to(store.square_norm())
    basis = torch.randn(n_params, min(n_kept + EXTRA, n_params), dtype=torch.float32, generator=generator).to(
        store.square_norm()
    )
    for _ in range(6):
        basis = torch.linalg.qr(sum(rows.T @ (rows @ basis) for rows in map(flatten, store.chunks(chunk)))).Q
    small = sum((rows @ basis).T @ (rows @ basis) for rows in map(flatten, store.chunks(chunk)))
    return (basis @ torch.linalg.eigh(small).eigenvectors.flip(1))[:, :n_kept].T.contiguous()


def leading_eigenvectors(matrix: Float[Tensor, "n n"], n_kept: int) -> Float[Tensor, "n_kept n"]:
    """Eigenvectors of a symmetric matrix with the largest eigenvalues, largest first: by ARPACK where few are wanted."""
    from scipy.sparse.linalg import ArpackError, eigsh  # costs a good part of what importing this library does

    if len(matrix) >= _DENSE_UP_TO and n_kept * 4 <= len(matrix):
        with suppress(ArpackError):  # a matrix of zeros, or no convergence
            vectors = eigsh(matrix.cpu().numpy(), k=n_kept, v0=np.ones(len(matrix)))[1]
            return torch.from_numpy(vectors.T[::-1].copy())
    return torch.linalg.eigh(matrix).eigenvectors.T.flip(0)[:n_kept]


def random_directions(like: Gradients, n_features: int, rank: int, generator: torch.Generator) -> LowRank:
    """Gaussian factors of each parameter's shape."""

    def draw(d: int, rank: int, to: Tensor) -> Tensor:
        return torch.randn(n_features, d, rank, dtype=torch.float32, generator=generator).to(to)

    factors = {}
    for name, gradient in like.items():
        d_out, d_in = gradient.matrix_shape
        own_rank = min(rank, d_out, d_in)
        factors[name] = (draw(d_out, own_rank, gradient.tensors[0]), draw(d_in, own_rank, gradient.tensors[0]))
    return LowRank(factors)


def gaussian_like(like: LowRank, generator: torch.Generator) -> LowRank:
    """Gaussian factors of given directions' number, shapes and ranks; on the CPU, of any length.

    Where each given direction lies in one of several parameters alone, as components do, so does the one drawn for it.
    """
    drawn = like.map(lambda tensor: torch.randn(tensor.shape, dtype=torch.float32, generator=generator))
    is_held = torch.stack([left.flatten(1).any(1) & right.flatten(1).any(1) for left, right in like.factors.values()]).cpu()
    if len(is_held) == 1 or not bool((is_held.sum(0) == 1).all()):
        return drawn
    pairs = zip(drawn.factors.items(), is_held, strict=True)
    return LowRank({name: (left * own[:, None, None], right) for (name, (left, right)), own in pairs})


def random_like(like: LowRank, generator: torch.Generator) -> LowRank:
    """Unit-norm directions with Gaussian factors: as many as given ones, of their shapes and ranks, on their device."""
    factors = zip(gaussian_like(like, generator).tensors, like.tensors, strict=True)
    drawn = like.with_tensors([factor.to(tensor) for factor, tensor in factors])
    drawn.scale_(1 / drawn.norm())
    return drawn


def singular_directions(subset: ParamSubset, n_features: int) -> LowRank:
    """u_i ⊗ v_i of every parameter, strongest first; then, where W has fewer, the pairs u_i ⊗ v_j by s_i · s_j."""
    candidates: list[tuple[bool, float, str, int, int]] = []
    sides = {}
    for view in subset.views:
        u, s, vh = torch.linalg.svd(view.to_matrix(view.tensor.detach()).float(), full_matrices=False)
        sides[view.name], n = (u, vh), min(len(s), n_features)
        pair = (s[:n, None] * s[:n]).sqrt().tolist()
        candidates += [(True, float(s[i]), view.name, i, i) for i in range(n)]
        candidates += [(False, pair[i][j], view.name, i, j) for i in range(n) for j in range(n) if i != j]
    candidates.sort(key=lambda candidate: candidate[:2], reverse=True)
    chosen, factors = candidates[:n_features], {}
    for view in subset.views:
        u, vh = sides[view.name]
        d_out, d_in = view.matrix_shape
        left, right = view.tensor.new_zeros(len(chosen), d_out, 1), view.tensor.new_zeros(len(chosen), d_in, 1)
        for feature, (_, _, name, i, j) in enumerate(chosen):
            if name == view.name:
                left[feature, :, 0], right[feature, :, 0] = u[:, i], vh[j]
        factors[view.name] = (_as_gradient(left), _as_gradient(right))
    return LowRank(factors)


def _as_gradient(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def dense_together(n_params: int) -> int:
    """How many samples' dense gradients of so many parameters exist together: below 128 MiB, but 16 at least."""
    return max(16, min(4096, _CHUNK_NUMBERS // n_params))
