"""Whether a name means something on this machine or on the Hugging Face hub: what exists here is never looked up there."""

import re
from pathlib import Path

from param_features.errors import SourceError

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
_FILES = (".txt", ".text", ".md", ".json", ".jsonl", ".csv", ".parquet", ".gz", ".safetensors", ".bin", ".pt")


def local_path(name: str) -> Path | None:
    """The path that `name` means, or None if it can only be a name on the hub.

    Raises:
        SourceError: It reads like a path, and there is nothing there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    why = _reads_like_a_path(name)
    if why is not None:
        raise SourceError(
            f"There is no {name!r} here, and it was not looked up on the Hugging Face hub since {why}. Give a path that "
            "exists, or a hub name such as 'owner/name'."
        )
    return None


def _reads_like_a_path(name: str) -> str | None:
    """Why a name is taken for a path, None if it is not."""
    if _HUB_NAME.fullmatch(name) is None:
        return "hub names are 'name' or 'owner/name'"
    if name.endswith(_FILES):
        return f"it ends like a file ({Path(name).suffix})"
    first = Path(name).parts[0]
    return f"{first!r} is a folder here" if "/" in name and Path(first).is_dir() else None
