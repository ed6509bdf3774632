"""A shard as the sink of a harvest."""

from jaxtyping import Int
from torch import Tensor

from param_features.gradients.disk.compression import Compression, Loss, loss_of
from param_features.gradients.disk.manifest import Whole
from param_features.gradients.disk.shards import ShardWriter, tensors_of
from param_features.gradients.store import storable
from param_features.gradients.types import Gradients


class ShardSink:
    """Writes the gradients of a shard's samples to its file, and notes which parameters they reach and what is lost."""

    def __init__(
        self, writer: ShardWriter, data_rows: Int[Tensor, " split_row"], compression: Compression | None = None
    ) -> None:
        """Take the open file.

        Args:
            writer: Writes it.
            data_rows: Which row of the data each row of the split is.
            compression: How gradients are stored; whole where there is none.
        """
        self._writer, self._data_rows, self._compression = writer, data_rows, compression
        self._reached: set[str] = set()
        self._losses: list[Loss] = []

    def begin(self, rows: Int[Tensor, " row"]) -> bool:
        """Take every batch: a shard is harvested whole."""
        return True

    def add(self, rows: Int[Tensor, " row"], positions: Int[Tensor, " row"], gradients: Gradients) -> None:
        """Write one sample of each of the rows.

        Raises:
            NonFiniteError: A gradient holds NaN or infinity; names the parameter.
        """
        whole = storable(gradients)
        unreached = whole.keys() - self._reached
        self._reached.update(name for name in unreached if bool(whole[name].square_norm().any()))
        stored = whole
        if self._compression is not None:
            stored = self._compression.applied(whole)
            self._losses.append(loss_of(whole, stored))
        self._writer.add(tensors_of(stored) | {"row": self._data_rows[rows], "position": positions})

    def finish(self) -> Whole:
        """Bring the file to the disk under its name, and say what the manifest keeps of it."""
        n_bytes, sha256 = self._writer.finish()
        return Whole(n_bytes, sha256, tuple(sorted(self._reached)), sum(self._losses, Loss()))
