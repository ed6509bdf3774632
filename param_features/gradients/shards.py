"""Files of many samples' gradients: safetensors, written piece by piece under another name, read by rows.

Reading copies the rows that are asked for out of the file. A memory map would be no faster, and every page that it touches
counts as resident memory until the system wants it back: of 2 GB of rows read at random a map keeps 2 GB, reading keeps the
rows (`benchmarks/store.py reading`).
"""

import hashlib
import json
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from param_features.errors import StoreError
from param_features.gradients.types import Dense, Factored, Gradient, Gradients, Indexed
from param_features.store import sync_folder

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FORMATS: dict[str, type] = {"dense": Dense, "factored": Factored, "indexed": Indexed}
_FIELDS = {"dense": ("matrix",), "factored": ("delta", "inputs"), "indexed": ("delta", "index")}
_PIECE = 2**24


class Column(NamedTuple):
    """One tensor of a shard, the samples first: its dtype by safetensors' name, and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Column":
        """Rows like a tensor's."""
        return cls(_NAMES[tensor.dtype], tuple(tensor.shape[1:]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return torch.Size(self.shape).numel() * _DTYPES[self.dtype].itemsize

    def empty(self, n: int) -> Tensor:
        """Room for some rows."""
        return torch.empty(n, *self.shape, dtype=_DTYPES[self.dtype])


@dataclass(frozen=True)
class Stored:
    """How one parameter's gradients lie in a shard.

    Attributes:
        format: `"dense"`, `"factored"` or `"indexed"`.
        columns: By the name of the format's field.
        d_in: Of an indexed one.
        read_as: The dtype that numbers have once they are read, where it is not the shard's: float32 for those kept in less.
    """

    format: str
    columns: Mapping[str, Column]
    d_in: int | None = None
    read_as: str | None = None

    @classmethod
    def like(cls, gradient: Gradient) -> "Stored":
        """As a gradient's own tensors."""
        format = next(name for name, kind in _FORMATS.items() if isinstance(gradient, kind))
        columns = dict(zip(_FIELDS[format], map(Column.of, gradient.tensors), strict=True))
        return cls(format, columns, gradient.d_in if isinstance(gradient, Indexed) else None)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Stored":
        """From JSON."""
        columns = {name: Column(dtype, tuple(shape)) for name, (dtype, shape) in record["columns"].items()}
        return cls(record["format"], columns, record["d_in"], record.get("read_as"))

    def gradient(self, tensors: Mapping[str, Tensor]) -> Gradient:
        """The gradients whose tensors were read."""
        more = {} if self.d_in is None else {"d_in": self.d_in}
        return _FORMATS[self.format](**{name: self._widened(tensors[name]) for name in self.columns}, **more)

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor if self.read_as is None or not tensor.is_floating_point() else tensor.to(_DTYPES[self.read_as])

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return sum(column.row_bytes for column in self.columns.values())

    @property
    def read_bytes(self) -> int:
        """Bytes that a sample takes once it is read."""
        is_wider = self.read_as is not None
        columns = (c._replace(dtype=self.read_as) if is_wider and "F" in c.dtype else c for c in self.columns.values())
        return sum(column.row_bytes for column in columns)


def columns_of(stored: Mapping[str, Stored]) -> dict[str, Column]:
    """A shard's columns by name: each parameter's, and the row of the data and the position of each sample."""
    places = {"row": Column("I64", ()), "position": Column("I64", ())}
    fields = {f"{name}/{field}": column for name, kind in stored.items() for field, column in kind.columns.items()}
    return fields | places


def tensors_of(gradients: Gradients) -> dict[str, Tensor]:
    """What a shard holds of some gradients, by column."""
    named = {name: (Stored.like(gradient).columns, gradient.tensors) for name, gradient in gradients.items()}
    return {
        f"{name}/{field}": tensor
        for name, (fields, tensors) in named.items()
        for field, tensor in zip(fields, tensors, strict=True)
    }


class ShardWriter:
    """Writes a shard's samples as they come; the file bears its name only once it is whole and on the disk.

    Memory: none beyond the samples given.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column], n_samples: int) -> None:
        """Open the unfinished file."""
        self.path, self.n_samples, self.n_done = path, n_samples, 0
        self._columns, self._unfinished = columns, path.with_name(path.name + ".unfinished")
        self._starts, self._header = _header(columns, n_samples)
        self._file = os.open(self._unfinished, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)

    def __enter__(self) -> "ShardWriter":
        """Itself, the header written."""
        try:
            _write(self._file, self._header, 0)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file, and remove it where it was not finished, so that it takes no room."""
        os.close(self._file)
        with suppress(FileNotFoundError):
            self._unfinished.unlink()

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Append samples, column by column."""
        n_new = len(tensors["row"])
        for name, column in self._columns.items():
            tensor = tensors[name].detach().cpu().contiguous()
            if Column.of(tensor) != column:
                raise AssertionError(f"{name} changed from {column} to {Column.of(tensor)} within a harvest")
            _write(self._file, _bytes(tensor), self._starts[name] + self.n_done * column.row_bytes)
        self.n_done += n_new

    def finish(self) -> tuple[int, str]:
        """Bring the file to the disk, name it and return its size and SHA-256."""
        if self.n_done != self.n_samples:
            raise AssertionError(f"{self.path.name} was given {self.n_done} of {self.n_samples} samples")
        os.fsync(self._file)
        found = os.fstat(self._file).st_size, checksum(self._unfinished)
        os.replace(self._unfinished, self.path)
        sync_folder(self.path.parent)
        return found


class ShardFile:
    """A finished shard, whose rows can be read."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header; its checksum is the caller's business.

        Raises:
            StoreError: The header cannot be read.
        """
        self.path = path
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        try:
            length = int.from_bytes(os.pread(self._file, 8, 0), "little")
            header = json.loads(os.pread(self._file, length, 8))
        except (ValueError, OverflowError, MemoryError) as error:
            raise StoreError(f"{path} is not a safetensors file: {error}. Harvest it again.") from error
        header.pop("__metadata__", None)
        self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
        self._columns = {name: Column(entry["dtype"], tuple(entry["shape"][1:])) for name, entry in header.items()}
        self.n_samples = header["row"]["shape"][0]

    def read_into(self, out: Tensor, name: str, first: int) -> None:
        """Fill a contiguous tensor with the rows of a column from `first` on.

        Raises:
            StoreError: The file ends before them.
        """
        place, left = self._starts[name] + first * self._columns[name].row_bytes, _bytes(out)
        while len(left):
            n_read = os.preadv(self._file, [left], place)
            if not n_read:
                raise StoreError(
                    f"{self.path} was cut short while it was read. Call pf.harvest again: it re-makes the shard."
                )
            place, left = place + n_read, left[n_read:]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """The row of the data and the position of each sample."""
        found = torch.empty(2, self.n_samples, dtype=torch.int64)
        for out, name in zip(found, ("row", "position"), strict=True):
            self.read_into(out, name, 0)
        return found[0], found[1]


def checksum(path: Path) -> str:
    """SHA-256 of a file. Cost: reads it once, a piece at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(columns: Mapping[str, Column], n_samples: int) -> tuple[dict[str, int], bytes]:
    """Where each column starts in the file, and the file's beginning: a length of 8 bytes, then JSON."""
    entries, end = {}, 0
    for name, column in columns.items():
        start, end = end, end + n_samples * column.row_bytes
        entries[name] = {"dtype": column.dtype, "shape": [n_samples, *column.shape], "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    text += b" " * (-len(text) % 8)
    starts = {name: 8 + len(text) + entry["data_offsets"][0] for name, entry in entries.items()}
    return starts, len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.as_strided((tensor.numel(),), (1,))  # a contiguous tensor of one entry may have any stride
    return flat.view(torch.uint8).numpy().data


def _write(file: int, data: bytes | memoryview, place: int) -> None:
    left = memoryview(data)
    while len(left):
        n_written = os.pwrite(file, left[:_PIECE], place)
        place, left = place + n_written, left[n_written:]
