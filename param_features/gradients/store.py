"""Harvested gradients: what is read of them wherever they lie, and those in memory, one block per parameter."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.errors import MemoryEstimateError, NoGradientError, NonFiniteError
from param_features.gradients.types import Gradients, compact, summed, together
from param_features.machine import Share

CHUNK_BYTES = 2**26
"""Bytes of the gradients that exist together where all samples are gone over: 64 MiB, but for a sample that takes more."""

_CHUNK_SAMPLES = 2048
"""Samples that are gone over together, where so many take no more than `CHUNK_BYTES`."""


def samples_together(sample_bytes: int, most: int = _CHUNK_SAMPLES) -> int:
    """How many samples `SampleGradients.chunks` reads together, at least one, given the bytes of a sample once it is read."""
    return max(1, min(most, CHUNK_BYTES // sample_bytes))


class SampleGradients(ABC):
    """A fixed number of samples' gradients, read by rows, in memory or on disk.

    Attributes:
        n_samples: How many.
    """

    n_samples: int

    @abstractmethod
    def rows(self, index: Int[Tensor, " sample"] | slice) -> Gradients:
        """The gradients of some samples, in the order of the index."""

    @property
    @abstractmethod
    def sample_bytes(self) -> int:
        """Bytes that a sample takes once it is read."""

    def chunks(self, size: int = _CHUNK_SAMPLES) -> Iterator[Gradients]:
        """All samples in order, `size` at a time, or as many as take `CHUNK_BYTES` where those are fewer."""
        size = samples_together(self.sample_bytes, size)
        for start in range(0, self.n_samples, size):
            yield self.rows(slice(start, start + size))

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² of each sample over all parameters."""
        return torch.cat([square_norm(chunk) for chunk in self.chunks()])

    def spread(self, n_most: int) -> "SampleGradients":
        """At most so many of the samples, spread evenly; all of them where they are no more."""
        if self.n_samples <= n_most:
            return self
        return SomeGradients(self, torch.linspace(0, self.n_samples - 1, n_most, dtype=torch.float64).long())


class SomeGradients(SampleGradients):
    """Some of the samples of others, read from there."""

    def __init__(self, whole: SampleGradients, chosen: Int[Tensor, " sample"]) -> None:
        """Take which of them, in order."""
        self._whole, self._chosen, self.n_samples = whole, chosen, len(chosen)

    @property
    def sample_bytes(self) -> int:
        """As of the others."""
        return self._whole.sample_bytes

    def rows(self, index: Int[Tensor, " sample"] | slice) -> Gradients:
        """The gradients of some of the chosen samples."""
        return self._whole.rows(self._chosen[index if isinstance(index, slice) else index.cpu()])


class GradientStore(SampleGradients):
    """A fixed number of samples' gradients in memory, filled part by part.

    Each parameter is kept factored or dense, whichever is smaller. Memory: `n_samples` times `bytes_per_sample`.
    """

    def __init__(self, n_samples: int, like: Gradients, dtype: torch.dtype | None = None) -> None:
        """Reserve room.

        Args:
            n_samples: How many samples will be added.
            like: Gradients of any one batch, whose formats and shapes are taken.
            dtype: Of the numbers kept; that of `like` by default. They are read as float32 at least.
        """
        blocks = {name: compact(gradient) for name, gradient in like.items()}

        def room(tensor: Tensor) -> Tensor:
            kept = dtype if tensor.is_floating_point() else None
            return tensor.new_empty(n_samples, *tensor.shape[1:], dtype=kept)

        self._gradients = {name: block.map(room) for name, block in blocks.items()}
        self._n_filled = 0
        self.n_samples = n_samples

    def add(self, gradients: Gradients) -> None:
        """Append samples.

        Raises:
            NonFiniteError: A gradient holds NaN or infinity; names the parameter.
        """
        n_new = 0
        for name, gradient in storable(gradients).items():
            n_new = gradient.n_samples
            for room, new in zip(self._gradients[name].tensors, gradient.tensors, strict=True):
                room[self._n_filled : self._n_filled + n_new] = new
        self._n_filled += n_new

    def go_to(self, sample: int) -> None:
        """Have the next samples added in this one's place and after it."""
        self._n_filled = sample

    def spread_out(self, share: Share, starts: Sequence[int]) -> None:
        """Bring what each process has added to all of them.

        Args:
            share: Of the batches.
            starts: Where each batch's samples begin, and where the last one's end.
        """
        for gradient in self._gradients.values():
            for tensor in gradient.tensors:
                for index in range(share.processes.n):
                    part = share.part(index)
                    share.processes.spread_(tensor[starts[part.start] : starts[part.stop]], index)

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes once it is read."""
        return bytes_per_sample(self.rows(slice(0, 1)))

    def rows(self, index: Int[Tensor, " sample"] | slice) -> Gradients:
        """The gradients of some samples; copies for an index, views for a slice of what is kept as it is read."""

        def read(tensor: Tensor) -> Tensor:
            some = tensor[index] if isinstance(index, slice) else tensor.index_select(0, index.to(tensor.device))
            return some.float() if some.dtype == torch.bfloat16 else some

        return {name: gradient.map(read) for name, gradient in self._gradients.items()}

    def check_gradients(self) -> None:
        """Refuse a parameter that no sample's output depends on.

        Raises:
            NoGradientError: Names the first parameter whose gradient is zero for every sample.
        """
        for name, gradient in self._gradients.items():
            if not any(
                bool(gradient.map(lambda t, at=start: t[at : at + 2048]).square_norm().any())
                for start in range(0, self.n_samples, 2048)
            ):
                refuse_zero(name)


def refuse_zero(name: str) -> None:
    """Refuse a parameter whose gradient was found to be zero for every sample.

    Raises:
        NoGradientError: Always.
    """
    raise NoGradientError(
        f"{name!r} has a zero gradient for every sample: the output does not depend on it here. Leave it out of params=, or "
        "check that the inputs reach it."
    )


def storable(gradients: Gradients) -> Gradients:
    """Each parameter's gradients in the form in which they are kept: factored or dense, whichever is smaller.

    Raises:
        NonFiniteError: A gradient holds NaN or infinity; names the parameter.
    """
    found = {name: compact(gradient) for name, gradient in gradients.items()}
    for name, gradient in found.items():
        ends = (end for tensor in gradient.tensors if tensor.numel() for end in tensor.aminmax())
        if not all(bool(torch.isfinite(end)) for end in ends):
            raise NonFiniteError(
                f"A gradient of {name!r} holds NaN or infinity, though the outputs are finite. Try float32 or float64 "
                "weights, or leave this parameter out."
            )
    return found


def square_norm(gradients: Gradients) -> Float[Tensor, " sample"]:
    """‖∇‖² over all parameters."""
    return summed([gradient.square_norm() for gradient in gradients.values()])


def flatten(gradients: Gradients) -> Float[Tensor, "sample n_params"]:
    """Every parameter's matrix in one row per sample. Cost: memory |W| a sample."""
    return torch.cat(together([gradient.dense().matrix.flatten(1) for gradient in gradients.values()]), 1)


def bytes_per_sample(gradients: Gradients, dtype: torch.dtype | None = None) -> int:
    """What a store keeps for each sample, with numbers of that dtype or their own."""
    stored = [tensor for gradient in gradients.values() for tensor in compact(gradient).tensors]
    return sum(
        tensor.shape[1:].numel() * (dtype if dtype and tensor.is_floating_point() else tensor.dtype).itemsize
        for tensor in stored
    )


def check_memory(n_samples: int, n_bytes: int, budget: int) -> None:
    """Refuse a harvest whose gradients would not fit.

    Raises:
        MemoryEstimateError: Gives the estimate, the budget and the number of samples that fits.
    """
    if n_samples * n_bytes > budget:
        raise MemoryEstimateError(
            f"{n_samples:,} samples of {n_bytes / 2**10:.0f} KiB need {n_samples * n_bytes / 2**30:.1f} GiB of memory; "
            f"{budget / 2**30:.1f} GiB may be used. Set n_samples={budget // n_bytes:,} or fewer, choose fewer parameters, "
            "or raise max_memory_gib."
        )
