"""What a store's folder says of itself: how it was made, which shards are planned, and which are whole."""

import base64
import json
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from param_features.errors import SettingError, StoreError
from param_features.files import Format, Origin, Part, is_number, is_plain_name, read_file, shown, write_whole
from param_features.gradients.disk.compression import STORED_DTYPES, Compression, Loss
from param_features.gradients.disk.recipe import Recipe, settings_of
from param_features.gradients.disk.shards import Stored, checksum
from param_features.params import ParamRecord

MANIFEST = "manifest.json"
INPUTS = "inputs.safetensors"
TRAIN, HELD_OUT = "train", "held_out"

FORMAT = Format("param_features gradients", "a store of gradients", (1, 2), "manifest_sha256")
_MOST_BYTES = 2**28
"""Of a manifest: 60,000 shards."""

_HEAD = ("format", "format_version", "library_version", "torch_version")
_FIELDS = ("recipe", "model", "n_slots", "stored", "planned", "whole", "states", "inputs_sha256")
_RECIPE = (
    "params",
    "weights",
    "data",
    "partners",
    "divergence",
    "divergence_code",
    "output",
    "output_code",
    "reference",
    "seed",
)
_THEN = "Harvest into another folder."
_MOST_STATE = 2**14
"""Characters of a generator's state as text."""


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
        """What training gradients lost by compression."""
        return sum((self.whole[shard.name].loss for shard in self.planned if shard.name in self.whole), Loss())

    def kinds(self, split: str) -> Mapping[str, Stored]:
        """How each parameter's gradients lie in a split's shards."""
        return self.compressed if split == TRAIN else self.stored

    def row_bytes(self, split: str) -> int:
        """Bytes of one sample, with its row and position."""
        return row_bytes(self.kinds(split))

    def n_samples(self, split: str) -> int:
        """How many samples a split has."""
        return sum(shard.n_samples for shard in self.planned if shard.split == split)

    def state(self, place: int) -> torch.Tensor:
        """The generator's state before the shard at a place."""
        return unpacked(self.states[place])

    def with_shard(self, place: int, whole: Whole, state: torch.Tensor) -> "Manifest":
        """A manifest with one more shard that is on the disk, and with the generator's state after it."""
        states = (*self.states[: place + 1], packed(state), *self.states[place + 2 :])
        return replace(self, whole={**self.whole, self.planned[place].name: whole}, states=states)

    def without(self, names: list[str]) -> "Manifest":
        """A manifest without some shards, which are to be made anew."""
        return replace(self, whole={name: whole for name, whole in self.whole.items() if name not in names})

    def damaged(self, folder: Path) -> dict[str, str]:
        """Which shards' files are not what was written, and why. Cost: reads every one."""
        reasons = {name: damage(folder / name, whole) for name, whole in self.whole.items()}
        return {name: why for name, why in reasons.items() if why}

    def write(self, folder: Path) -> None:
        """Write the manifest in the place of the one before, whole or not at all."""
        record = {
            "torch_version": torch.__version__,
            **asdict(self),
            "whole": {name: whole._asdict() for name, whole in self.whole.items()},
        }
        write_whole(folder / MANIFEST, json.dumps(FORMAT.stamped(record), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check the manifest of a folder.

        Raises:
            StoreError: There is none, it was edited, or it is of a format that this version cannot read.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise StoreError(f"{folder} holds no {MANIFEST}, so it is no store. pf.harvest(…, directory=…) makes one.")
        origin = Origin(str(path), _THEN)
        record = FORMAT.read(read_file(path, origin, most=_MOST_BYTES), origin, most=_MOST_BYTES)
        part = Part(record, "", origin)
        part.check_fields((*_HEAD, *_FIELDS), ("compressed",))
        _check_recipe(part.part("recipe"))
        stored = _read_kinds(part, "stored")
        manifest = cls(
            recipe=record["recipe"],
            model=part.text("model"),
            n_slots=part.count("n_slots", least=1),
            stored=stored,
            compressed=_read_kinds(part, "compressed") if "compressed" in record else stored,
            planned=tuple(map(_read_planned, part.listed("planned"))),
            whole={name: _read_whole(whole, stored) for name, whole in part.parts("whole").items()},
            states=part.texts("states", most=_MOST_STATE),
            inputs_sha256=part.sha256("inputs_sha256"),
        )
        _check_shards(manifest, origin)
        return manifest


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
    try:
        return "" if checksum(path) == whole.sha256 else "does not match its checksum"
    except StoreError:
        return f"cannot be opened, or is a link that leads out of {path.parent}"


def has_inputs(folder: Path, manifest: Manifest) -> bool:
    """Whether the file of the data is what was written."""
    with suppress(StoreError):  # a link that leads elsewhere is not what was written
        return (folder / INPUTS).is_file() and checksum(folder / INPUTS) == manifest.inputs_sha256
    return False


def packed(state: torch.Tensor) -> str:
    """A generator's state as text."""
    return base64.b64encode(zlib.compress(state.numpy().tobytes())).decode()


def unpacked(text: str) -> torch.Tensor:
    """Inverse of `packed`.

    Raises:
        StoreError: The text holds no generator's state.
    """
    n_bytes = torch.Generator().get_state().numel()
    try:
        state_bytes = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), n_bytes + 1)
    except (ValueError, zlib.error):
        state_bytes = b""
    if len(state_bytes) != n_bytes:
        raise StoreError(f"{MANIFEST} holds a state that is not a random generator's, which has {n_bytes} bytes. {_THEN}")
    return torch.frombuffer(bytearray(state_bytes), dtype=torch.uint8)


def _check_recipe(recipe: Part) -> None:
    """Refuse a recipe that this library's own code could not read; entries that it does not know are compared, not read.

    Raises:
        StoreError: Names the entry.
    """
    recipe.check_fields(_RECIPE, (*recipe.body,))
    for part in recipe.parts("params").values():
        ParamRecord.read(part)
    for name in ("divergence", "reference"):
        recipe.text(name)
    recipe.count("seed", least=-(2**63), most=2**63)
    for name in ("weights", "data"):
        recipe.sha256(name)
    for name in ("partners", "divergence_code", "output_code"):
        if not recipe.is_null(name):
            recipe.sha256(name)
    if not recipe.is_null("output"):
        recipe.text("output")
    if "dtype" in recipe.body:
        recipe.choice("dtype", STORED_DTYPES)
    try:
        Compression(recipe.body.get("compress_rank"), recipe.body.get("dtype", "float32"))
        settings_of(dict(recipe.body))
    except (SettingError, TypeError) as error:
        recipe.origin.refuse(f"holds a recipe of which {str(error)[:400]}", error)


def _read_kinds(part: Part, key: str) -> dict[str, Stored]:
    """How each parameter of the recipe lies in a shard.

    Raises:
        StoreError: They are other parameters, or other matrices.
    """
    kinds = {name: Stored.read(kind) for name, kind in part.parts(key).items()}
    params = {name: ParamRecord.read(record) for name, record in part.part("recipe").parts("params").items()}
    expected = {name: record.matrix_shape for name, record in params.items()}
    if not kinds or {name: kind.matrix_shape for name, kind in kinds.items()} != expected:
        part.refuse(key, f"the recipe's parameters with matrices {shown(expected, 400)}")
    return kinds


def _read_planned(part: Part) -> Planned:
    part.check_fields(("name", "split", "first_row", "n_rows", "n_samples"))
    name = part.text("name")
    if not is_plain_name(name) or name in (MANIFEST, INPUTS):
        part.refuse("name", "the name of a file in the same folder: letters, digits, _, . and -")
    counts = part.count("first_row"), part.count("n_rows", least=1), part.count("n_samples", least=1)
    return Planned(name, part.choice("split", (TRAIN, HELD_OUT)), *counts)


def _read_whole(part: Part, params: Mapping[str, Any]) -> Whole:
    part.check_fields(("n_bytes", "sha256", "reached"), ("loss",))
    reached, loss = part.texts("reached"), part.body.get("loss", Loss())
    if not set(reached) <= params.keys():
        part.refuse("reached", f"some of the parameters {', '.join(map(shown, params))}")
    if not isinstance(loss, list | tuple) or len(loss) != 3 or not all(is_number(value) and value >= 0 for value in loss):
        part.refuse("loss", "three numbers from 0")
    return Whole(part.count("n_bytes"), part.sha256("sha256"), reached, Loss(*loss))


def _check_shards(manifest: Manifest, origin: Origin) -> None:
    """Refuse shards that do not add up: their names, their order, and what is known of each.

    Raises:
        StoreError: Names what does not add up.
    """
    names = [shard.name for shard in manifest.planned]
    if len(set(names)) != len(names):
        origin.refuse("plans two shards of one name")
    if not manifest.whole.keys() <= set(names):
        origin.refuse(f"holds the shard {shown(min(manifest.whole.keys() - set(names)))}, which is not planned")
    for split in (TRAIN, HELD_OUT):
        first = 0
        for shard in (shard for shard in manifest.planned if shard.split == split):
            if shard.first_row != first or shard.n_samples != shard.n_rows * manifest.n_slots:
                origin.refuse(
                    f"plans {shown(shard)}; accepted: first_row {first}, and {manifest.n_slots} samples for each row"
                )
            first += shard.n_rows
        if not first:
            origin.refuse(f"plans no shard of the split {split!r}")
    if not 1 <= len(manifest.states) <= len(names) + 1:
        origin.refuse(f"holds {len(manifest.states)} states of the generator; accepted: 1 to {len(names) + 1}")
