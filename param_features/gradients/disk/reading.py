"""Harvested gradients on disk, read as those in memory are."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.errors import StoreError
from param_features.gradients.disk.shards import Column, ShardFile, Stored, columns_of
from param_features.gradients.store import GradientStore, SampleGradients
from param_features.gradients.types import Gradients


class DiskGradients(SampleGradients):
    """The gradients of several shards, in their order, read when they are asked for.

    Memory: the rows asked for, and four bytes a sample once their norms were asked for.
    """

    def __init__(
        self, shards: Sequence[ShardFile], stored: Mapping[str, Stored], device: torch.device | None = None
    ) -> None:
        """Take open shards, how they hold each parameter, and where gradients are to lie once read; the CPU by default."""
        self._shards, self._stored, self._device = tuple(shards), dict(stored), device or torch.device("cpu")
        self._ends = np.cumsum([shard.n_samples for shard in shards])
        self.n_samples = int(self._ends[-1])
        self._square_norm: Tensor | None = None

    def to(self, device: torch.device) -> "DiskGradients":
        """The same gradients, brought to a device as they are read."""
        return self if device == self._device else DiskGradients(self._shards, self._stored, device)

    def rows(self, index: Int[Tensor, " sample"] | slice) -> Gradients:
        """The gradients of some samples. Cost: one read a parameter and factor for each run of neighbours."""
        wanted = np.arange(self.n_samples)[index if isinstance(index, slice) else index.cpu().numpy()]
        runs = self._runs(wanted)
        columns = columns_of(self._stored)
        gradients = {}
        for name, stored in self._stored.items():
            tensors = {field: self._column(f"{name}/{field}", columns, runs, len(wanted)) for field in stored.columns}
            gradients[name] = stored.gradient(tensors)
        return gradients

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes once it is read."""
        return sum(stored.read_bytes for stored in self._stored.values())

    def square_norm(self) -> Float[Tensor, " sample"]:
        """‖∇‖² of each sample over all parameters; computed once.

        Raises:
            StoreError: The files hold NaN or infinity.
        """
        if self._square_norm is None:
            square_norm = super().square_norm()
            n_bad = int((~square_norm.isfinite()).sum())
            if n_bad:
                raise StoreError(
                    f"{self._shards[0].path.parent} holds {n_bad} samples whose gradients are NaN, infinite or too large to "
                    "square. Harvest into another folder, from a model whose weights are finite."
                )
            self._square_norm = square_norm
        return self._square_norm

    @property
    def places(self) -> tuple[Int[Tensor, " sample"], Int[Tensor, " sample"]]:
        """Which row of the data each sample is, and which position in it."""
        rows, positions = zip(*(shard.places for shard in self._shards), strict=True)
        return torch.cat(rows), torch.cat(positions)

    def _runs(self, wanted: np.ndarray) -> list[tuple[int, int, int, int]]:
        """Runs of neighbours within a shard: (shard, first row in it, first place among those wanted, place after)."""
        if not len(wanted):
            return []
        shard = np.searchsorted(self._ends, wanted, side="right")
        breaks = np.flatnonzero((np.diff(wanted) != 1) | (np.diff(shard) != 0)) + 1
        starts, ends = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(wanted)]])
        first = wanted - np.concatenate([[0], self._ends])[shard]
        return list(zip(shard[starts].tolist(), first[starts].tolist(), starts.tolist(), ends.tolist(), strict=True))

    def _column(self, name: str, columns: Mapping[str, Column], runs: list[tuple[int, int, int, int]], n: int) -> Tensor:
        out = columns[name].empty(n)
        for shard, first, start, end in runs:
            self._shards[shard].read_into(out[start:end], name, first)
        return out.to(self._device)


def near(*stores: DiskGradients, n_bytes: int) -> list[SampleGradients]:
    """The same gradients in memory, where all take no more than so many bytes: rows are then copied, not read from files."""
    if sum(store.n_samples * store.sample_bytes for store in stores) > n_bytes:
        return list(stores)
    return [_in_memory(store) for store in stores]


def _in_memory(gradients: DiskGradients) -> GradientStore:
    store = GradientStore(gradients.n_samples, gradients.rows(slice(0, 1)))
    for chunk in gradients.chunks():
        store.add(chunk)
    return store
