"""The registry of adapters: a model's class name to the adapter that reads it."""

import os
from collections.abc import Callable, Mapping
from typing import Any

from param_features.errors import AdapterError, RegistryError
from param_features.machine import shown
from param_features.params.adapter import Adapter
from param_features.params.naming import class_names

_ADAPTERS: dict[str, Callable[[Any], Adapter]] = {}


def register_adapter(class_name: str, adapter: Callable[[Any], Adapter]) -> None:
    """Read models of the named class, and of its subclasses, with `adapter`.

    Args:
        class_name: Top-level package and class, such as `"transformer_lens.HookedTransformer"`. A name rather than the
            class, so that registering imports nothing.
        adapter: The adapter's class, or a function that gives an adapter; called with the model.

    Raises:
        RegistryError: `class_name` is already registered.
    """
    if class_name in _ADAPTERS:
        known = getattr(_ADAPTERS[class_name], "__name__", "a function")
        raise RegistryError(
            f"{class_name!r} already has the adapter {known}. Register the name of a subclass of the model instead: look-up "
            "follows the MRO and takes the first hit."
        )
    _ADAPTERS[class_name] = adapter


def _how_to_give(model: Any) -> str:
    """What to do where something else than a model stands for one; empty where it may be one."""
    if isinstance(model, str | os.PathLike):
        return (
            "Load the model first: transformer_lens.HookedTransformer.from_pretrained(name), or "
            "transformers.AutoModelForCausalLM.from_pretrained(name) with tokenizer=."
        )
    if isinstance(model, Mapping):
        return "A state dict holds weights alone: load it into its module with load_state_dict, and give the module."
    if isinstance(model, list | tuple):
        return "Give the model alone; a tokenizer goes to tokenizer=."
    if isinstance(model, type):
        return "That is a class: give a model of it, with trained weights."
    return "Give a torch nn.Module." if model is None else ""


def adapter_for(model: Any) -> Adapter:
    """The adapter of the first class in the model's MRO that is registered.

    Raises:
        AdapterError: No class of the model is registered.
    """
    for name in class_names(model):
        if name in _ADAPTERS:
            return _ADAPTERS[name](model)
    hint = _how_to_give(model)
    if hint:
        raise AdapterError(f"model is {shown(model)}. {hint}")
    raise AdapterError(
        f"No adapter reads a {type(model).__module__}.{type(model).__name__}. Known: {', '.join(_ADAPTERS)}. Pass the "
        "model itself (a torch nn.Module), or register an adapter with pf.adapters.register_adapter."
    )
