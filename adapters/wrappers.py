"""Wrappers around a model that has an adapter of its own: nnsight's, and torch's compiled and parallel ones."""

from importlib.metadata import version
from typing import Any

from param_features.errors import ModelStateError
from param_features.params import Adapter, adapter_for

from .module import ModuleAdapter


def nnsight_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model inside an nnsight wrapper, names as that model has them; with the wrapper's tokenizer.

    It runs the model inside, which knows nothing of the wrapper's edits: with any, its runs raise a `ModelStateError`.
    """
    attributes = vars(wrapped)
    name = f"nnsight {version('nnsight')} {type(wrapped).__name__}"

    def refuse_edits() -> None:
        if attributes.get("_edits"):
            raise ModelStateError(
                f"This {name} holds edits (model.edit), which act in its traces and not in the model inside. "
                "Call model.clear_edits() first, or give the model inside, model._module, to read it without them."
            )

    inner = adapter_for(attributes["_module"])
    return inner.reading(tokenizer=attributes.get("tokenizer"), wrapper=name, refuse=refuse_edits)


def peft_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model in which peft's layers lie, names as that model has them.

    Where peft adds virtual tokens instead, the model is run through the wrapper, as a plain module.
    """
    configs = wrapped.peft_config.values()
    if any(config.is_prompt_learning for config in configs):
        return ModuleAdapter(wrapped)
    return adapter_for(wrapped.base_model.model).reading(wrapper=f"peft {type(wrapped).__name__}")


def compiled_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model that `torch.compile` was given: hooks and replaced weights would not reach compiled code."""
    return adapter_for(wrapped._orig_mod).reading(wrapper="torch.compile")


def parallel_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model inside `DataParallel` or `DistributedDataParallel`."""
    return adapter_for(wrapped.module).reading(wrapper=type(wrapped).__name__)
