"""Layers whose weights are no floating-point Parameters: packed by torch, or integers with a scale."""

import fnmatch
import re
from collections.abc import Iterable

import torch
from torch import nn

_PACKED = re.compile(r"torch\.ao\.nn\.(\w+\.)?quantized\b")
_HOLDS_WEIGHTS = ("weight", "_all_weight_values", "_packed_weight_ih")


def packed_layers(model: nn.Module) -> list[str]:
    """Names of layers that torch quantised, such as by `quantize_dynamic`: they pass no gradients on to their inputs."""
    return [name for name, layer in model.named_modules() if _is_packed(layer)]


def quantised_layers(model: nn.Module) -> list[str]:
    """Names of all layers with a weight that is no floating-point Parameter."""
    return [name for name, layer in model.named_modules() if _is_packed(layer) or _holds_integers(layer)]


def quantised_match(pattern: str | re.Pattern, layers: Iterable[str]) -> str | None:
    """The first of some layers that a name, glob or regex means, or a weight of; None without one."""
    if isinstance(pattern, re.Pattern):
        return next((layer for layer in layers if any(map(pattern.fullmatch, (layer, _weight(layer))))), None)
    return next((layer for layer in layers if _is_meant(pattern, layer)), None)


def _is_meant(text: str, layer: str) -> bool:
    known = (layer, _weight(layer))
    return text.startswith(f"{layer}." if layer else "weight") or any(fnmatch.fnmatchcase(name, text) for name in known)


def _weight(layer: str) -> str:
    return f"{layer}.weight" if layer else "weight"


def _is_packed(layer: nn.Module) -> bool:
    return bool(_PACKED.match(type(layer).__module__)) and any(hasattr(layer, name) for name in _HOLDS_WEIGHTS)


def _holds_integers(layer: nn.Module) -> bool:
    tensors = {**layer._parameters, **layer._buffers}
    return any(
        "weight" in name and tensor is not None and not (tensor.is_floating_point() or tensor.dtype == torch.bool)
        for name, tensor in tensors.items()
    )
