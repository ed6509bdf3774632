"""Trained weights of toys on disk, so that a toy that takes minutes to train is trained once on a machine."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from param_features.errors import StoreError
from param_features.files import Origin, read_file, read_tensors

Weights = dict[str, Tensor]
"""Tensors by name."""


def cache_folder() -> Path:
    """Where trained toys lie.

    `$PARAM_FEATURES_CACHE` where that is set; otherwise `param_features/toys` in `$XDG_CACHE_HOME` or `~/.cache`.
    """
    chosen = os.environ.get("PARAM_FEATURES_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "param_features" / "toys"


def cached_weights(name: str, arguments: Mapping[str, Any], train: Callable[[], Weights], *, version: int) -> Weights:
    """What `train` returned for these arguments the last time, or what it returns now.

    A file that cannot be read is made again, and a folder that cannot be written costs the next process the training:
    the weights are the same either way.

    Args:
        name: Of the toy; begins the file's name.
        arguments: Everything that the weights depend on, as JSON can hold it.
        train: Makes the weights.
        version: Of the training code; another number never meets older files.

    Returns:
        The weights, on the CPU.
    """
    path = cache_folder() / f"{name}-{_digest(arguments, version)}.safetensors"
    with contextlib.suppress(StoreError):
        origin = Origin(str(path), "It is made again.")
        return read_tensors(read_file(path, origin), origin)[0]
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in train().items()}
    with contextlib.suppress(OSError):
        _write(path, save(weights))
    return weights


def cached_checkpoints(
    name: str, arguments: Mapping[str, Any], train: Callable[[], Mapping[int, Weights]], *, version: int
) -> dict[int, Weights]:
    """As `cached_weights`, for the weights at several training steps, in rising order."""

    def joined() -> Weights:
        return {f"{step}/{key}": tensor for step, weights in train().items() for key, tensor in weights.items()}

    checkpoints: dict[int, Weights] = {}
    for key, tensor in cached_weights(name, arguments, joined, version=version).items():
        step, _, name_in_model = key.partition("/")
        checkpoints.setdefault(int(step), {})[name_in_model] = tensor
    return dict(sorted(checkpoints.items()))


def _digest(arguments: Mapping[str, Any], version: int) -> str:
    text = json.dumps({"version": version, **arguments}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also when two processes write the same one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=path.stem, suffix=".unfinished", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
