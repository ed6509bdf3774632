"""A folder written whole or not at all: filled under another name, then put in its place."""

import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from param_features.errors import StoreError


def check_replaceable(folder: Path, known: Collection[str]) -> None:
    """Refuse to write an adapter where something else lies.

    Raises:
        StoreError: It is a file, or a folder that holds other files than `known`.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is a file. Give the name of a folder; it is made where there is none.")
    foreign = sorted(item.name for item in folder.iterdir() if item.name not in known) if folder.is_dir() else []
    if foreign:
        raise StoreError(
            f"{folder} holds {', '.join(foreign[:3])}{' …' if len(foreign) > 3 else ''}, which an adapter does not have. "
            "Give a folder of its own; an empty one, and an earlier adapter, are replaced."
        )


def write_folder(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Have `fill` write into a new folder beside `folder`, then put it there; what was there stays until then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".unfinished", dir=folder.parent))
    try:
        new = holder / "new"
        new.mkdir()
        fill(new)
        if folder.exists():
            os.replace(folder, holder / "old")
        os.replace(new, folder)
    finally:
        if (holder / "old").exists() and not folder.exists():
            os.replace(holder / "old", folder)
        shutil.rmtree(holder)
    return folder
