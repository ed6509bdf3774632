"""What a store's folder says of itself: how it was made, which shards are planned, and which are whole."""

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from param_features.errors import StoreError
from param_features.factors.compression import Compression, Loss
from param_features.factors.recipe import Recipe
from param_features.gradients.shards import Stored, checksum
from param_features.store import library_version, write_whole

MANIFEST = "manifest.json"
INPUTS = "inputs.safetensors"
TRAIN, HELD_OUT = "train", "held_out"

_FORMAT, _VERSION, _READABLE = "param_features gradients", 2, (1, 2)


@dataclass(frozen=True)
class Planned:
    """A shard as it is planned.

    Attributes:
        name: Of its file.
        split: `"train"` or `"held_out"`.
        first_row: Where its rows begin among those of the split.
        n_rows: How many follow each other.
        n_samples: Samples of those rows.
    """

    name: str
    split: str
    first_row: int
    n_rows: int
    n_samples: int


class Whole(NamedTuple):
    """A shard that is on the disk.

    Attributes:
        n_bytes: Size of its file.
        sha256: Of its file.
        reached: Parameters whose gradient is not zero for all of its samples.
        loss: What its samples lost by compression.
    """

    n_bytes: int
    sha256: str
    reached: tuple[str, ...]
    loss: Loss = Loss()


@dataclass(frozen=True)
class Manifest:
    """The record of a store.

    Attributes:
        recipe: What it is made from.
        model: Library and class, for the record.
        n_slots: Positions per row.
        stored: How each parameter's gradients lie in a held-out shard, and in a training shard where nothing is compressed.
        compressed: How they lie in a training shard.
        planned: Every shard in order.
        whole: Those on the disk, by name.
        states: The random generator's state before each shard that was begun, and after the last of them.
        inputs_sha256: Of the file that holds the data.
    """

    recipe: Recipe
    model: str
    n_slots: int
    stored: Mapping[str, Stored]
    compressed: Mapping[str, Stored]
    planned: tuple[Planned, ...]
    whole: Mapping[str, Whole]
    states: tuple[str, ...]
    inputs_sha256: str

    @property
    def missing(self) -> list[Planned]:
        """Shards that are not on the disk."""
        return [shard for shard in self.planned if shard.name not in self.whole]

    @property
    def compression(self) -> Compression:
        """How training gradients are stored."""
        return Compression(self.recipe.get("compress_rank"), self.recipe.get("dtype", "float32"))

    @property
    def loss(self) -> Loss:
        """What training gradients lost by it."""
        return sum((self.whole[shard.name].loss for shard in self.planned if shard.name in self.whole), Loss())

    def kinds(self, split: str) -> Mapping[str, Stored]:
        """How each parameter's gradients lie in a split's shards."""
        return self.compressed if split == TRAIN else self.stored

    def row_bytes(self, split: str) -> int:
        """Bytes of one sample, with its row and position."""
        return row_bytes(self.kinds(split))

    def n_samples(self, split: str) -> int:
        """Samples of a split."""
        return sum(shard.n_samples for shard in self.planned if shard.split == split)

    def state(self, place: int) -> torch.Tensor:
        """The generator's state before the shard at a place."""
        return unpacked(self.states[place])

    def with_shard(self, place: int, found: Whole, state: torch.Tensor) -> "Manifest":
        """With one more shard, and the generator's state after it."""
        states = (*self.states[: place + 1], packed(state), *self.states[place + 2 :])
        return replace(self, whole={**self.whole, self.planned[place].name: found}, states=states)

    def without(self, names: list[str]) -> "Manifest":
        """Without some shards, which are to be made anew."""
        return replace(self, whole={name: found for name, found in self.whole.items() if name not in names})

    def damaged(self, folder: Path) -> dict[str, str]:
        """Which shards' files are not what was written, and why. Cost: reads every one."""
        found = {name: damage(folder / name, whole) for name, whole in self.whole.items()}
        return {name: why for name, why in found.items() if why}

    def write(self, folder: Path) -> None:
        """Put it in the place of the one before, whole or not at all."""
        record = {
            "format": _FORMAT,
            "format_version": _VERSION,
            "library_version": library_version(),
            "torch_version": torch.__version__,
            **asdict(self),
            "whole": {name: found._asdict() for name, found in self.whole.items()},
        }
        write_whole(folder / MANIFEST, json.dumps(record | {"manifest_sha256": _own_sum(record)}, indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check it.

        Raises:
            StoreError: There is none, it was edited, or it is of a format that this version cannot read.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreError(f"{folder} holds no {MANIFEST}, so it is no store. pf.harvest(…, directory=…) makes one.")
        record = _checked(path)
        return cls(
            recipe=record["recipe"],
            model=record["model"],
            n_slots=record["n_slots"],
            stored=_read_kinds(record["stored"]),
            compressed=_read_kinds(record.get("compressed", record["stored"])),
            planned=tuple(Planned(**shard) for shard in record["planned"]),
            whole={name: _read_whole(found) for name, found in record["whole"].items()},
            states=tuple(record["states"]),
            inputs_sha256=record["inputs_sha256"],
        )


def row_bytes(stored: Mapping[str, Stored]) -> int:
    """Bytes of one sample in a shard, with its row and position."""
    return 16 + sum(kind.row_bytes for kind in stored.values())


def damage(path: Path, whole: Whole) -> str:
    """What is wrong with a shard's file; empty when nothing is."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != whole.n_bytes:
        return f"has {size:,} bytes instead of {whole.n_bytes:,}"
    return "" if checksum(path) == whole.sha256 else "does not match its checksum"


def has_inputs(folder: Path, manifest: Manifest) -> bool:
    """Whether the file of the data is what was written."""
    return (folder / INPUTS).is_file() and checksum(folder / INPUTS) == manifest.inputs_sha256


def packed(state: torch.Tensor) -> str:
    """A generator's state as text."""
    return base64.b64encode(zlib.compress(state.numpy().tobytes())).decode()


def unpacked(text: str) -> torch.Tensor:
    """Inverse of `packed`."""
    return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=torch.uint8)


def _read_kinds(record: Mapping[str, Any]) -> dict[str, Stored]:
    return {name: Stored.read(kind) for name, kind in record.items()}


def _read_whole(record: Mapping[str, Any]) -> Whole:
    loss = Loss(*record.get("loss", ()))
    return Whole(record["n_bytes"], record["sha256"], tuple(record["reached"]), loss)


def _checked(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not JSON ({error}): it was edited. Harvest into another folder.") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise StoreError(f"{path} does not describe a store of gradients: its 'format' is not {_FORMAT!r}.")
    if record.get("format_version") not in _READABLE:
        raise StoreError(
            f"{path} has format version {record.get('format_version')!r}; this library reads versions "
            f"{' and '.join(map(str, _READABLE))}. It was "
            f"written by param_features {record.get('library_version')}: install that version, or harvest anew."
        )
    stated = record.pop("manifest_sha256", None)
    if stated != _own_sum(record):
        raise StoreError(f"{path} does not match its own checksum: it was edited. Harvest into another folder.")
    return record


def _own_sum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
