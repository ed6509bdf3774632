"""Files of saved features: safetensors and JSON, written whole or not at all, checked on reading, never executed."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from param_features.errors import StoreError

FORMAT_VERSION = 1
_TENSORS = "features.safetensors"
_CONFIG = "config.json"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_bundle(directory: str | PathLike, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write both files, each under another name first, so that an interrupted write leaves what was there.

    `config.json` comes last and holds the checksums of both, so a half-written pair is refused on reading.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    config = {
        "format": "param_features",
        "format_version": FORMAT_VERSION,
        "library_version": library_version(),
        **record,
        "tensors_sha256": hashlib.sha256(data).hexdigest(),
    }
    config["config_sha256"] = _checksum(config)
    write_whole(folder / _TENSORS, data)
    write_whole(folder / _CONFIG, json.dumps(config, indent=2).encode())


def read_bundle(directory: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read and check both files.

    Raises:
        StoreError: A file is missing, cut short, edited, or of a format that this version cannot read.
    """
    folder = Path(directory)
    for name in (_CONFIG, _TENSORS):
        if not (folder / name).is_file():
            raise StoreError(f"{folder} holds no {name}. Saved features are a folder with {_CONFIG} and {_TENSORS}.")
    config = _read_config(folder / _CONFIG)
    data = (folder / _TENSORS).read_bytes()
    if hashlib.sha256(data).hexdigest() != config["tensors_sha256"]:
        raise StoreError(
            f"{folder / _TENSORS} ({len(data):,} bytes) does not match the checksum in {_CONFIG}: it was cut short, edited "
            "or comes from another save. Copy both files again from where they were saved."
        )
    try:
        return load_file(folder / _TENSORS), config
    except SafetensorError as error:
        raise StoreError(f"{folder / _TENSORS} is not a safetensors file: {error}. Copy it again.") from error


def write_whole(path: Path, data: bytes) -> None:
    """Put a file in its place once it is on the disk, so that neither a kill nor a power cut leaves a part of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # on a full disk it would take the room that is left
        raise
    sync_folder(path.parent)


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room."""
    return error.errno in _FULL


def size_text(n_bytes: int) -> str:
    """Bytes as a message says them."""
    return f"{n_bytes / 2**30:.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.2f} MiB"


@contextmanager
def alone_in(folder: Path, who: str) -> Iterator[None]:
    """Keep a second one of `who` out of a folder; the lock goes with the process that holds it.

    Raises:
        StoreError: Another one is at work.
    """
    import fcntl  # POSIX alone has it

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(f"Another {who} writes to {folder}. Wait for its end, or give another directory.") from error
        yield


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, so that a rename outlives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def library_version() -> str:
    """This library's version, "unknown" when it runs uninstalled."""
    try:
        return version("param_features")
    except PackageNotFoundError:
        return "unknown"


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is not JSON ({error}): it was cut short or edited. Copy it again.") from error
    if not isinstance(config, dict) or config.get("format") != "param_features":
        raise StoreError(f"{path} does not describe saved features: its 'format' is not 'param_features'.")
    if config.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {config.get('format_version')!r}; this library reads version {FORMAT_VERSION}. "
            f"It was written by param_features {config.get('library_version')}: install that version."
        )
    stated = config.pop("config_sha256", None)
    if stated != _checksum(config):
        raise StoreError(f"{path} does not match its own checksum: it was edited. Copy it again from where it was saved.")
    return config


def _checksum(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
