"""What the user gives as weights or as a change of them, as matrices of the decomposed parameters."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

from param_features.errors import InputError, NonFiniteError, StoreError, UnknownParameterError, nearest
from param_features.gradients import GradientEngine
from param_features.machine import at_home
from param_features.params import ParamView

ParamMatrices = dict[str, Float[Tensor, "d_out d_in"]]
"""By parameter, each with sides of its own; float64 on the CPU."""


def read_state(weights: Any) -> dict[str, Tensor]:
    """Tensors by name from a module, a state dict, or a file of one (.safetensors, or torch's own; no code is executed).

    Raises:
        StoreError: The file is missing or holds no tensors by name.
        InputError: It is none of these.
    """
    if isinstance(weights, nn.Module):
        return dict(weights.state_dict(keep_vars=True))
    if isinstance(weights, str | PathLike):
        weights = _read_file(Path(at_home(weights)))
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise InputError(
            f"Weights were given as a {type(weights).__name__}. Give a state dict, a module, or the path of a .safetensors "
            "or torch file with tensors by name."
        )
    return dict(weights)


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise StoreError(f"There is no file {str(path)!r}. Give the path of a .safetensors or torch file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken file makes its reader raise
        raise StoreError(f"{str(path)!r} cannot be read as tensors by name: {error}") from error


def chosen_matrices(engine: GradientEngine, state: Mapping[str, Tensor]) -> ParamMatrices:
    """The decomposed parameters' matrices out of tensors by name; others are ignored.

    Args:
        engine: Knows the parameters.
        state: By the library's own names, or by those that its users say.

    Raises:
        UnknownParameterError: A parameter is missing.
        InputError: A tensor has another shape than the parameter.
        NonFiniteError: A tensor holds NaN or infinity.
    """
    aliases = engine.adapter.aliases()
    return {view.name: _matrix(view, state, aliases) for view in engine.subset.views}


def _matrix(view: ParamView, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Float[Tensor, "d_out d_in"]:
    tensor = _named(view, state, aliases).detach().to("cpu", torch.float64)
    if tensor.shape != view.shape:
        raise InputError(f"{view.name!r} has shape {tuple(view.shape)} here and {tuple(tensor.shape)} in what is given.")
    n_bad = int((~torch.isfinite(tensor)).sum())
    if n_bad:
        raise NonFiniteError(f"{view.name!r} holds {n_bad} values that are NaN or infinite in what is given.")
    return view.to_matrix(tensor)


def _named(view: ParamView, state: Mapping[str, Tensor], aliases: Mapping[str, str]) -> Tensor:
    """The tensor of that name, or read out of the stored one that holds it."""
    stored = view.name.partition("[")[0] if view.layout.part is not None else view.name
    for name in (view.name, *(alias for alias, real in aliases.items() if real == view.name)):
        if name in state and state[name].shape == view.shape:
            return state[name]
    for name in (stored, *(alias for alias, real in aliases.items() if real == stored)):
        if name in state:
            is_stored = state[name].shape == view.stored.shape
            return view.layout.read(state[name]) if is_stored else state[name]
    raise UnknownParameterError(
        f"What is given has no tensor for {view.name!r}. It holds {len(state)}; nearest: {nearest(view.name, list(state))}. "
        "Give tensors by the model's own parameter names."
    )
