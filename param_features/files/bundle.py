"""Folders of saved features: safetensors and JSON, written whole or not at all, checked on reading, never executed."""

import hashlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from param_features.errors import StoreError
from param_features.files.checked_json import MOST_BYTES, Format, parse_json
from param_features.files.disk import Origin, read_file, write_whole
from param_features.files.places import new_folder
from param_features.files.tensors import read_tensors

FORMAT = Format("param_features", "saved features", (1,), "config_sha256")
COMPONENTS = Format("param_features components", "saved components", (1,), "config_sha256")
TENSORS = "features.safetensors"
CONFIG = "config.json"
_ADVICE = "Copy both files again from where they were saved."


def write_bundle(
    directory: str | PathLike, tensors: Mapping[str, Tensor], record: Mapping[str, Any], format: Format = FORMAT
) -> None:
    """Write both files, each under another name first, so that an interrupted write leaves what was there.

    `config.json` comes last and holds the checksums of both, so a half-written pair is refused on reading.
    """
    folder = new_folder(directory)
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    config = format.stamped({**record, "tensors_sha256": hashlib.sha256(data).hexdigest()})
    write_whole(folder / TENSORS, data)
    write_whole(folder / CONFIG, json.dumps(config, indent=2, allow_nan=False).encode())


def read_bundle(directory: str | PathLike, *, within: Path | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read both files, each once, and check that they are whole; what they say is checked by `read_saved`.

    Args:
        directory: Where they lie.
        within: The folder inside which links may lead, such as a cache whose files are links; `directory` by default.

    Raises:
        StoreError: A file is missing, cut short, edited, a link that leads out of the folder, or of a format that this
            version cannot read.
    """
    folder = Path(directory)
    for name in (CONFIG, TENSORS):
        if not (folder / name).exists():
            raise StoreError(f"{folder} holds no {name}. Saved features are a folder with {CONFIG} and {TENSORS}.")
    text, data = Origin(str(folder / CONFIG), _ADVICE), Origin(str(folder / TENSORS), _ADVICE)
    root = within or folder
    written = parse_json(read_file(folder / CONFIG, text, within=root, most=MOST_BYTES), text)
    is_of_components = isinstance(written, dict) and written.get("format") == COMPONENTS.name
    record = (COMPONENTS if is_of_components else FORMAT).checked(written, text)
    stored = read_file(folder / TENSORS, data, within=root)
    if hashlib.sha256(stored).hexdigest() != record.pop("tensors_sha256", None):
        data.refuse(
            f"({len(stored):,} bytes) does not match the checksum in {CONFIG}: it was cut short, edited or comes from "
            "another save"
        )
    return read_tensors(stored, data)[0], record
