"""Finished fits of a sweep on disk: read again where they are those asked for."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from param_features.errors import StoreError
from param_features.fitted import Fitted
from param_features.run.loading import load


def read_finished(
    folder: Path,
    wanted: Mapping[str, Any],
    *,
    model: Any,
    divergence: Callable[[Tensor, Tensor], Tensor] | None,
    output: Callable[[Any], Tensor] | None,
    positions: Callable[[Tensor], Tensor] | None,
    tokenizer: Any,
) -> Fitted | None:
    """The fit in a folder; None where there is none, or its files are unfinished or damaged.

    Args:
        folder: Of one setting.
        wanted: What its record must say.
        model: The model that it is bound to.
        divergence: As for `pf.load`; so are `output`, `positions` and `tokenizer`.
        output: Code that is not saved.
        positions: The same.
        tokenizer: For strings.

    Raises:
        StoreError: The folder holds a fit that was made otherwise; names every difference.
    """
    if not (folder / "config.json").exists():
        return None
    try:
        features = load(folder, model=model, divergence=divergence, output=output, positions=positions, tokenizer=tokenizer)
    except StoreError:
        return None
    plain = json.loads(json.dumps(dict(wanted)))
    record = {**features.config, "gradients": features.config.get("store", {}).get("recipe_sha256")}
    differing = [name for name, value in plain.items() if record.get(name) != value]
    if differing:
        lines = "; ".join(f"{name} {_short(plain[name])}, there {_short(record.get(name))}" for name in differing)
        raise StoreError(
            f"{folder} holds a fit that was made otherwise: {lines}. Give the same arguments to go on with this sweep, or "
            "another directory=."
        )
    return features


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
