"""Files of many samples' gradients: safetensors, written piece by piece under another name, read by rows.

Reading copies the rows that are asked for out of the file. A memory map would be no faster, and every page that it touches
counts as resident memory until the system wants it back: of 2 GB of rows read at random a map keeps 2 GB, reading keeps the
rows (`benchmarks/store.py reading`).
"""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from param_features.errors import StoreError
from param_features.files import (
    DTYPES,
    MOST_COUNT,
    Origin,
    Part,
    fresh,
    header_bytes,
    is_count,
    opened,
    read_header,
    shown,
    sync_folder,
    unfinished,
)
from param_features.gradients.types import Dense, Factored, Gradient, Gradients, Indexed

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FLOATS = ("F64", "F32", "F16", "BF16")
_INTEGERS = ("I64", "I32")
_FORMATS: dict[str, type] = {"dense": Dense, "factored": Factored, "indexed": Indexed}
_FIELDS: dict[str, dict[str, tuple[int, tuple[str, ...]]]] = {
    "dense": {"matrix": (2, _FLOATS)},
    "factored": {"delta": (2, _FLOATS), "inputs": (2, _FLOATS)},
    "indexed": {"delta": (2, _FLOATS), "index": (1, _INTEGERS)},
}
"""The fields of each format: how many axes a row has, and the dtypes that it may be of."""

_THEN = "Call pf.harvest again: it makes the shard anew."
_PIECE = 2**24


class Column(NamedTuple):
    """One tensor of a shard, the samples first: its dtype by safetensors' name, and the shape of one row."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Column":
        """The column whose rows are like a tensor's."""
        return cls(_NAMES[tensor.dtype], tuple(tensor.shape[1:]))

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return torch.Size(self.shape).numel() * DTYPES[self.dtype].itemsize

    def empty(self, n: int) -> Tensor:
        """A tensor with room for some rows, not filled."""
        return torch.empty(n, *self.shape, dtype=DTYPES[self.dtype])


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
        """How a gradient like this one lies in a shard: as its own tensors."""
        format = next(name for name, kind in _FORMATS.items() if isinstance(gradient, kind))
        columns = dict(zip(_FIELDS[format], map(Column.of, gradient.tensors), strict=True))
        return cls(format, columns, gradient.d_in if isinstance(gradient, Indexed) else None)

    @classmethod
    def read(cls, part: Part) -> "Stored":
        """Read from JSON how a parameter's gradients lie in a shard.

        Raises:
            StoreError: It says what no gradients are.
        """
        part.check_fields(("format", "columns", "d_in"), ("read_as",))
        fields = _FIELDS[part.choice("format", _FIELDS)]
        columns = part.part("columns")
        columns.check_fields(tuple(fields))
        columns_read = {name: _column(columns, name, *fields[name]) for name in fields}
        if len({column.shape[0] for column in columns_read.values()}) != 1:
            part.refuse("columns", "fields with equally many positions")
        is_indexed = part.body["format"] == "indexed"
        d_in = part.count("d_in", least=1) if is_indexed else None
        if not is_indexed and not part.is_null("d_in"):
            part.refuse("d_in", "null, but for the format 'indexed'")
        return cls(
            part.body["format"], columns_read, d_in, None if part.is_null("read_as") else part.choice("read_as", _FLOATS)
        )

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        shapes = [column.shape for column in self.columns.values()]
        return shapes[0] if self.format == "dense" else (shapes[0][1], self.d_in or shapes[1][1])  # pyright: ignore[reportReturnType]

    def gradient(self, tensors: Mapping[str, Tensor]) -> Gradient:
        """The gradients whose tensors were read."""
        self._check_index(tensors)
        table_size = {} if self.d_in is None else {"d_in": self.d_in}
        return _FORMATS[self.format](**{name: self._widened(tensors[name]) for name in self.columns}, **table_size)

    def _check_index(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse rows of a table that it does not have.

        Raises:
            StoreError: Gives the rows that the shard holds and those that the table has.
        """
        index = tensors.get("index")
        if index is not None and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < (self.d_in or 0):
            raise StoreError(
                f"A shard holds rows {int(index.min())} to {int(index.max())} of a table with rows 0 to "
                f"{(self.d_in or 0) - 1}: it was edited. {_THEN}"
            )

    def _widened(self, tensor: Tensor) -> Tensor:
        return tensor if self.read_as is None or not tensor.is_floating_point() else tensor.to(DTYPES[self.read_as])

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


def _column(part: Part, name: str, n_axes: int, dtypes: tuple[str, ...]) -> Column:
    """A field's dtype and shape.

    Raises:
        StoreError: The format's field has others.
    """
    value = part.body[name]
    is_pair = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], list)
    is_shape = is_pair and len(value[1]) == n_axes and all(is_count(d, 1) for d in value[1])
    if not is_shape or value[0] not in dtypes or math.prod(value[1]) > MOST_COUNT:
        part.refuse(name, f"a dtype ({', '.join(dtypes)}) and the shape of a row, with {n_axes} axes")
    return Column(value[0], tuple(value[1]))


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
        self._columns, self._unfinished = columns, unfinished(path)
        self._starts, self._header = _header(columns, n_samples)
        self._file = fresh(self._unfinished)

    def __enter__(self) -> "ShardWriter":
        """Write the header."""
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
        size_and_sum = os.fstat(self._file).st_size, checksum(self._unfinished)
        os.replace(self._unfinished, self.path)
        sync_folder(self.path.parent)
        return size_and_sum


class ShardFile:
    """A finished shard, whose rows can be read."""

    def __init__(self, path: Path) -> None:
        """Open the file and read its header; its checksum is the caller's business.

        Raises:
            StoreError: The header cannot be read.
        """
        self.path, origin = path, Origin(str(path), _THEN)
        self._file = opened(path, origin)
        weakref.finalize(self, os.close, self._file)
        n_bytes = os.fstat(self._file).st_size
        length = header_bytes(os.pread(self._file, 8, 0), n_bytes, origin)
        entries = read_header(os.pread(self._file, 8 + length, 0), n_bytes, origin).entries
        row = entries.get("row")
        if row is None or len(row.shape) != 1 or any(entry.shape[:1] != row.shape for entry in entries.values()):
            origin.refuse("is no shard: its tensors do not have one row for each entry of 'row'")
        self._starts = {name: entry.start for name, entry in entries.items()}
        self._columns = {name: Column(entry.dtype, entry.shape[1:]) for name, entry in entries.items()}
        self.n_samples = row.shape[0]

    def check(self, columns: Mapping[str, Column], n_samples: int) -> "ShardFile":
        """Give back the shard where it holds these columns of so many samples, in any order.

        Raises:
            StoreError: It holds something else.
        """
        if self._columns != dict(columns) or self.n_samples != n_samples:
            expected = {name: f"{column.dtype} {list(column.shape)}" for name, column in columns.items()}
            raise StoreError(
                f"{self.path} holds {self.n_samples} samples of {shown(self._columns, 400)}; its manifest says {n_samples} "
                f"samples of {shown(expected, 400)}. {_THEN}"
            )
        return self

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
        places = torch.empty(2, self.n_samples, dtype=torch.int64)
        for out, name in zip(places, ("row", "position"), strict=True):
            self.read_into(out, name, 0)
        return places[0], places[1]


def checksum(path: Path) -> str:
    """SHA-256 of a file. Cost: reads it once, a piece at a time."""
    with os.fdopen(opened(path, Origin(str(path), _THEN)), "rb") as file:
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
