"""Wrappers around a model that has an adapter of its own: nnsight's, and torch's compiled and parallel ones."""

from importlib.metadata import version
from typing import Any

from param_features.params import Adapter, adapter_for


def nnsight_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model inside an nnsight wrapper, names as that model has them; with the wrapper's tokenizer."""
    attributes = vars(wrapped)
    tokenizer = attributes.get("tokenizer")
    inner = adapter_for(attributes["_module"])
    return inner.reading(tokenizer=tokenizer, wrapper=f"nnsight {version('nnsight')} {type(wrapped).__name__}")


def compiled_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model that `torch.compile` was given: hooks and replaced weights would not reach compiled code."""
    return adapter_for(wrapped._orig_mod).reading(wrapper="torch.compile")


def parallel_adapter(wrapped: Any) -> Adapter:
    """The adapter of the model inside `DataParallel` or `DistributedDataParallel`."""
    return adapter_for(wrapped.module).reading(wrapper=type(wrapped).__name__)
