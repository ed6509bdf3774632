"""Gains of `nn.LayerNorm` and `nn.RMSNorm`: y = gain · x̂ (+ bias)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.rules.shared import gain
from param_features.gradients.types import Dense


@register_rule(nn.LayerNorm, "weight")
def layer_norm_weight(layer: nn.LayerNorm, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂gain = Σ_s δ_s · x̂_s."""
    normalized = functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _as_matrix(layer, gain(layer, normalized, delta))


@register_rule(nn.RMSNorm, "weight")
def rms_norm_weight(layer: nn.RMSNorm, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂gain = Σ_s δ_s · x̂_s."""
    normalized = functional.rms_norm(inputs, layer.normalized_shape, eps=layer.eps)
    return _as_matrix(layer, gain(layer, normalized, delta))


@register_rule(nn.LayerNorm, "bias")
def layer_norm_bias(layer: nn.LayerNorm, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂bias = Σ_s δ_s."""
    return _as_matrix(layer, gain(layer, torch.ones_like(delta), delta))


def _as_matrix(layer: nn.LayerNorm | nn.RMSNorm, gradient: Tensor) -> Dense:
    """First axis of the normalised shape out, the others in."""
    return Dense(gradient.reshape(len(gradient), layer.normalized_shape[0], -1))
