"""Layers that a model converts as it runs: Switch Transformers' routers make themselves float32 at each call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def quiet_conversions(module: nn.Module) -> Iterator[None]:
    """Run a block in which converting a layer to the dtype and device that it has leaves its weights alone.

    Torch's own `.to` assigns to `.data` all the same; under functorch it assigns functorch's tensors, which outlive their
    transform, and the next use of the weights ends the process. Other conversions are done as ever.
    """
    layers = [layer for layer in module.modules() if "_apply" not in layer.__dict__]
    try:
        for layer in layers:
            layer.__dict__["_apply"] = lambda function, recurse=True, layer=layer: _apply(layer, function, recurse)
        yield
    finally:
        for layer in layers:
            layer.__dict__.pop("_apply", None)


def _apply(layer: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool) -> nn.Module:
    """What `layer._apply` does, but for writing what is there already."""
    own = [tensor for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]
    with torch.no_grad():
        is_done = all(_is_alike(function(tensor), tensor) for tensor in own)
    if not is_done:
        return type(layer)._apply(layer, function, recurse)
    for child in layer.children() if recurse else ():
        child._apply(function)
    return layer


def _is_alike(converted: Tensor, tensor: Tensor) -> bool:
    return converted.dtype == tensor.dtype and converted.device == tensor.device
