"""Where files are to be written: checked before the work, so that none is lost."""

import os
from os import PathLike
from pathlib import Path

from param_features.errors import DestinationError


def new_file(path: str | PathLike, example: str) -> Path:
    """The path of a file that is to be written, its `~` read; an earlier file there will be replaced.

    Args:
        path: Where to.
        example: A file's name, for the message.

    Raises:
        DestinationError: It is a folder, or nothing can be written there.
    """
    file = _checked(path)
    if file.is_dir():
        raise DestinationError(f"{str(path)!r} is a folder. Give a file in it, such as {str(file / example)!r}.")
    return file


def new_folder(path: str | PathLike) -> Path:
    """The path of a folder that files are to be written into, its `~` read; made where it is missing, by whoever writes.

    Raises:
        DestinationError: It is a file, or nothing can be written there.
    """
    folder = _checked(path)
    if folder.exists() and not folder.is_dir():
        raise DestinationError(f"{str(path)!r} is a file. Give a folder, or a name that is not taken.")
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise DestinationError(f"Nothing can be written into {str(path)!r}: no permission. Give another folder.")
    return folder


def _checked(path: str | PathLike) -> Path:
    place = Path(os.path.expanduser(path))
    try:
        existing = next(parent for parent in place.parents if parent.exists())
        place.exists()
    except (OSError, ValueError, StopIteration) as error:
        raise DestinationError(f"{str(path)[:200]!r} cannot be a path: {error}. Give another name.") from None
    if "\0" in str(place) or not str(path):
        raise DestinationError(f"{str(path)!r} cannot be a path. Give a name.")
    if not existing.is_dir():
        raise DestinationError(f"{str(existing)!r} is a file, so {str(path)!r} cannot lie in it. Give another place.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise DestinationError(f"Nothing can be written into {str(existing)!r}: no permission. Give another place.")
    return place
