"""Finished fits of a sweep on disk: read again where they are those asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from param_features.errors import StoreError
from param_features.fitted import Fitted
from param_features.run.loading import load

Wanted = Mapping[str, Any]


def read_kept(folder: Path, wanted: Wanted, **call: Any) -> Fitted | None:
    """The fit in a folder; None where there is none, or its files are unfinished or damaged.

    Args:
        folder: Of one setting.
        wanted: What its record must say.
        call: Further arguments of `pf.load`.

    Raises:
        StoreError: The folder holds a fit that was made otherwise; names every difference.
    """
    if not (folder / "config.json").exists():
        return None
    try:
        found = load(folder, **call)
    except StoreError:
        return None
    plain = json.loads(json.dumps(dict(wanted)))
    there = {**found.config, "gradients": found.config.get("store", {}).get("recipe_sha256")}
    differing = [name for name, value in plain.items() if there.get(name) != value]
    if differing:
        lines = "; ".join(f"{name} {_short(plain[name])}, there {_short(there.get(name))}" for name in differing)
        raise StoreError(
            f"{folder} holds a fit that was made otherwise: {lines}. Give the same arguments to go on with this sweep, or "
            "another directory=."
        )
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
