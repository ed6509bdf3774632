"""Weights that accelerate's hooks bring in for the time of a call: where they are meanwhile, and which can be read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from param_features.params.views import ParamView, all_parameters


def offloaded_value(owner: nn.Module, attribute: str) -> Tensor | None:
    """The values of a parameter that `device_map=` put on the disk or the CPU; None where no hook brings them in.

    Cost: reads them.
    """
    for hook in _hooks(owner):
        weights = getattr(hook, "weights_map", None)
        if getattr(hook, "offload", False) and weights is not None:
            return weights[attribute]
    return None


def is_offloaded(view: ParamView) -> bool:
    """Whether a parameter has no values now and a hook brings them in for each call."""
    return view.stored.is_meta and any(
        getattr(hook, "offload", False) and getattr(hook, "weights_map", None) is not None for hook in _hooks(view.owner)
    )


def values_of(view: ParamView) -> Tensor:
    """The stored parameter, or what its hook would bring in."""
    brought_in = offloaded_value(view.owner, view.attribute) if view.stored.is_meta else None
    return view.stored if brought_in is None else brought_in


def device_for_inputs(module: nn.Module) -> torch.device:
    """Where the model's first parameter is, or runs."""
    first = next(iter(all_parameters(module)), None)
    if first is None:
        return torch.device("cpu")
    if not first.is_meta:
        return first.device
    places = (getattr(hook, "execution_device", None) for child in module.modules() for hook in _hooks(child))
    place = next((place for place in places if place is not None), None)
    return first.device if place is None else torch.device(place)


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks that accelerate put on a module."""
    return _flat(getattr(module, "_hf_hook", None))


def _flat(hook: Any) -> list[Any]:
    """A hook, or those that it runs one after the other, which may be such hooks again."""
    if hook is None:
        return []
    return [inner for part in hook.hooks for inner in _flat(part)] if hasattr(hook, "hooks") else [hook]


@contextmanager
def untied(module: nn.Module) -> Iterator[None]:
    """Run a block in which hooks do not look at addresses to spare tied weights a second copy: forward mode has none."""
    hooks = [hook for child in module.modules() for hook in _hooks(child) if hasattr(hook, "tied_params_map")]
    saved = [(hook, hook.tied_params_map, hook.tied_params_names) for hook in hooks]
    try:
        for hook in hooks:
            hook.tied_params_map, hook.tied_params_names = None, set()
        yield
    finally:
        for hook, tied, names in saved:
            hook.tied_params_map, hook.tied_params_names = tied, names
