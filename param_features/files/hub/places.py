"""Whether a name means something on this machine or on the Hugging Face hub: what exists here is never looked up there."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from param_features.errors import SettingError, SourceError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)
_FILES = (".txt", ".text", ".md", ".json", ".jsonl", ".csv", ".parquet", ".gz", ".safetensors", ".bin", ".pt")


@dataclass(frozen=True)
class HubPlace:
    """Where features lie on the hub.

    Attributes:
        repo: `owner/name`.
        revision: Branch, tag or commit; None for the main branch.
    """

    repo: str
    revision: str | None = None


def features_place(where: str | PathLike, revision: str | None = None) -> Path | HubPlace:
    """Where saved features lie: a folder here, or `owner/name` or `owner/name@revision` on the hub.

    Raises:
        SourceError: It reads like a path, and there is nothing there; or it names no owner.
        SettingError: A revision is given for a folder, or two are.
    """
    path = Path(where) if isinstance(where, PathLike) else _existing(where)
    name, _, named_revision = ("", "", "") if path is not None else str(where).partition("@")
    path = path or local_path(name)
    if path is None:
        return HubPlace(_with_owner(name), _one_revision(where, named_revision or None, revision))
    if named_revision or revision is not None:
        raise SettingError(
            f"revision={named_revision or revision!r} belongs to features on the hub, and {str(path)!r} is a folder here. "
            "Leave it out."
        )
    return path


def local_path(name: str) -> Path | None:
    """The path that `name` means, or None if it can only be a name on the hub.

    Raises:
        SourceError: It reads like a path, and there is nothing there.
    """
    path = _existing(name)
    if path is not None:
        return path
    why = _reads_like_a_path(name)
    if why is not None:
        raise SourceError(
            f"There is no {name!r} here, and it was not looked up on the Hugging Face hub since {why}. Give a path that "
            "exists, or a hub name such as 'owner/name'."
        )
    return None


def is_hub_name(name: str) -> bool:
    """Whether it has the form of a hub name: `name` or `owner/name`."""
    return _HUB_NAME.fullmatch(name) is not None


def _existing(name: str) -> Path | None:
    """The path of that name, None where there is nothing or nothing can be."""
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # too long for a name; the home of a user who is not there
        return None


def _reads_like_a_path(name: str) -> str | None:
    """Why a name is taken for a path, None if it is not."""
    if not is_hub_name(name):
        return "hub names are 'name' or 'owner/name'"
    if name.endswith(_FILES):
        return f"it ends like a file ({Path(name).suffix})"
    first = Path(name).parts[0]
    return f"{first!r} is a folder here" if "/" in name and Path(first).is_dir() else None


def _with_owner(name: str) -> str:
    if "/" not in name:
        raise SourceError(
            f"There is no {name!r} here, and features on the Hugging Face hub have an owner. Give a folder that exists, or "
            "'owner/name'."
        )
    return name


def _one_revision(where: str | PathLike, named: str | None, revision: str | None) -> str | None:
    if named is not None and revision is not None and named != revision:
        raise SettingError(f"{str(where)!r} names one revision and revision={revision!r} another. Give one of them.")
    return named if revision is None else revision
