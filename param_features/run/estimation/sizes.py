"""What each stage of a decomposition holds in memory, from shapes alone; nothing is run."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from param_features.fit import MOST_OVERLAPS, Encoder, FitSettings, rounds_for
from param_features.gradients import Factored, Gradient, Gradients, bytes_per_sample, compact, costs_less_as_matrices
from param_features.measure import control_bytes

_CHUNK_BYTES = 2**26
_DENSE_NUMBERS = 2**25
_LARGE = 2**18
_RESTART_BYTES = 2**28
_PIECE = 4096
_TRIANGLES = 2.6
"""Pursuit's triangles that exist at once: of all samples, of those that go on, and of those that go on after these."""


@dataclass(frozen=True)
class Sizes:
    """How large a decomposition is.

    Attributes:
        like: Gradients of a few samples, in the form in which they are stored.
        n_train: Samples for fitting.
        n_held_out: Samples for measuring.
        n_features: Directions.
        rank: Factors per direction and parameter.
        l0: Mean number of features kept per sample.
        fit: Settings of the fit.
        batch_bytes: What harvesting a batch takes beside the gradients kept; 0 where that is not known.
        is_stored: Whether the gradients lie on disk.
    """

    like: Gradients
    n_train: int
    n_held_out: int
    n_features: int
    rank: int
    l0: float
    fit: FitSettings
    batch_bytes: int = 0
    is_stored: bool = False

    @classmethod
    def of(cls, gradients: Gradients, *numbers: Any, **more: Any) -> "Sizes":
        """From gradients of a few samples as they are taken, and the other attributes."""
        return cls({name: compact(gradient) for name, gradient in gradients.items()}, *numbers, **more)

    @property
    def n_samples(self) -> int:
        """Training and held out."""
        return self.n_train + self.n_held_out

    @property
    def sample_bytes(self) -> int:
        """Bytes that a stored sample takes."""
        return bytes_per_sample(self.like)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return self.n_samples * self.sample_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of a store of these gradients; each sample's row and position beside it."""
        return self.gradient_bytes + 16 * self.n_samples

    @cached_property
    def stages(self) -> dict[str, int]:
        """Bytes at the peak of each stage: the gradients, the directions, and what the stage makes."""
        kept = 0 if self.is_stored else self.gradient_bytes
        found = 2 * self._n_directions * self.item
        return {
            "harvest": kept + self.batch_bytes,
            "start": kept + found + self._start_bytes,
            "fit": kept + 5 * found + max(self._step_bytes, self._restart_bytes),
            "ranking": kept + 2 * found + self._read_bytes(self.n_train),
            "controls": kept + 2 * found + self._control_bytes,
        }

    @property
    def peak_bytes(self) -> int:
        """Bytes at the peak of the largest stage."""
        return max(self.stages.values())

    @property
    def largest(self) -> str:
        """The stage that takes the most memory."""
        return max(self.stages, key=self.stages.__getitem__)

    def within(self, n_bytes: int) -> dict[str, int]:
        """For each setting the largest value with which the run takes so many bytes, all others as they are.

        Settings that do not help by themselves are left out; `"store"` is there where gradients on disk would, with their
        size. Nothing is there where the run fits as it is.
        """
        if self.peak_bytes <= n_bytes:
            return {}
        share = self.n_train / self.n_samples
        tries = {
            "n_samples": (self.n_samples, lambda n: self._with_samples(n, share)),
            "n_features": (self.n_features, self._with_features),
            "batch_size": (self.fit.batch_size, lambda n: replace(self, fit=replace(self.fit, batch_size=n))),
        }
        found = {name: _largest(most, lambda n, to=to: to(n).peak_bytes <= n_bytes) for name, (most, to) in tries.items()}
        on_disk = replace(self, is_stored=True).peak_bytes <= n_bytes
        return {name: n for name, n in found.items() if n} | ({"store": self.disk_bytes} if on_disk else {})

    def _with_samples(self, n: int, share: float) -> "Sizes":
        return replace(self, n_train=round(n * share), n_held_out=n - round(n * share))

    def _with_features(self, n: int) -> "Sizes":
        return replace(self, n_features=n, l0=max(1.0, self.l0 * n / self.n_features))

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return next(iter(self.like.values())).tensors[0].element_size()

    @property
    def n_params(self) -> int:
        """Numbers of the parameters."""
        return sum(torch.Size(gradient.matrix_shape).numel() for gradient in self.like.values())

    @property
    def _n_directions(self) -> int:
        """Numbers of one set of directions."""
        return self.n_features * sum(_rank(g, self.rank) * sum(g.matrix_shape) for g in self.like.values())

    @property
    def n_rounds(self) -> int | None:
        """Of pursuit, where that is asked for."""
        return rounds_for(self.l0, self.n_features) if self.fit.selection == "pursuit" else None

    @property
    def _start_bytes(self) -> int:
        """The first directions: matrices of as many samples as are built at a time, and their singular vectors."""
        n = min(self.n_features, max(1, _DENSE_NUMBERS // self.n_params))
        if all(_is_low_rank(gradient) for gradient in self.like.values()):
            return 4 * n * self.sample_bytes
        return n * self.sample_bytes + 3 * n * self.n_params * self.item

    @property
    def _step_bytes(self) -> int:
        """One step: a batch and its scaled copy; then the products with directions, pursuit and the Gram matrix."""
        n = min(self.fit.batch_size, self.n_train)
        batch = n * self.sample_bytes
        inner = self._overlap_bytes(n, 2 * self.n_features, is_graded=True)
        gram = sum(3 * (self.n_features * _rank(g, self.rank)) ** 2 * self.item for g in self.like.values())
        code = self._code_bytes(n)
        scaled = n * sum(gradient.tensors[0].shape[1:].numel() for gradient in self.like.values()) * self.item
        return max(batch + scaled, batch + inner + code // 4, batch + inner // 3 + code) + gram

    def _overlap_bytes(self, n: int, n_directions: int, *, is_graded: bool) -> int:
        """What ⟨∇, v⟩ of so many samples and directions makes, and keeps for its backward pass where there is one."""
        more = 1.5 if is_graded else 1.0
        return round(more * self.item * sum(self._overlap_numbers(g, n, n_directions) for g in self.like.values()))

    def _overlap_numbers(self, gradient: Gradient, n: int, n_directions: int) -> int:
        rank, n_params = _rank(gradient, self.rank), torch.Size(gradient.matrix_shape).numel()
        if len(gradient.tensors) == 1:
            return n_directions * n_params
        n_heard = n * gradient.tensors[0].shape[1]
        is_factored = isinstance(gradient, Factored)
        if is_factored and costs_less_as_matrices(gradient.matrix_shape, n, n_heard, n_directions, rank):
            return (n + n_directions) * n_params
        return 3 * n_heard * n_directions * rank

    def _code_bytes(self, n: int) -> int:
        """Coordinates of so many samples, by pursuit where that is asked for."""
        overlaps, rounds = n * self.n_features, self.n_rounds
        if rounds is None:
            return 6 * overlaps * self.item
        triangles = (min(n, _PIECE) if Encoder(rounds).is_twice(n) else n) * rounds**2
        return round((6 * overlaps + _TRIANGLES * triangles) * self.item)

    @property
    def _restart_bytes(self) -> int:
        """Judging what to restart, and the matrices of what might take its place."""
        n = min(4 * self.fit.batch_size, self.n_train)
        read = 2 * min(n * self.sample_bytes, _RESTART_BYTES)
        return max(read + self._code_bytes(n) // 2, self._code_bytes(n), self._start_bytes) if self.fit.resample else 0

    def _read_bytes(self, n: int) -> int:
        """Codes of as many samples as are read together."""
        n = min(n, MOST_OVERLAPS // self.n_features)
        together = min(n, 2048, max(1, _CHUNK_BYTES // self.sample_bytes))
        inner = self._overlap_bytes(together, self.n_features, is_graded=False)
        return max(together * self.sample_bytes + inner, self._code_bytes(n))

    @property
    def _control_bytes(self) -> int:
        counts = {"n_features": self.n_features, "n_samples": self.n_train, "n_held_out": self.n_held_out}
        shapes = {name: gradient.matrix_shape for name, gradient in self.like.items()}
        return control_bytes(shapes, **counts, is_pursued=self.n_rounds is not None) * self.item // 4


def _rank(gradient: Gradient, rank: int) -> int:
    return min(rank, *gradient.matrix_shape)


def _is_low_rank(gradient: Gradient) -> bool:
    d_out, d_in = gradient.matrix_shape
    is_large = isinstance(gradient, Factored) and d_out * d_in >= _LARGE
    return is_large and 2 * gradient.tensors[0].shape[1] <= min(d_out, d_in)


def _largest(most: int, fits) -> int:
    """The largest number below `most` that fits, to two figures; 0 where not even 1 does."""
    low, high = 0, most
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
