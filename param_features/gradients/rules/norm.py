"""Gains of norms: y = gain · x̂ (+ bias), over the last axes (LayerNorm, RMSNorm) or the channels (BatchNorm, GroupNorm)."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

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


@register_rule("rms_norm", "weight")
def foreign_rms_norm_weight(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """As `rms_norm_weight`, for a library's own class, whether it multiplies by its weight or by 1 plus it."""
    eps = getattr(layer, "variance_epsilon", getattr(layer, "eps", None)) or 1e-6
    normalized = inputs * torch.rsqrt(inputs.square().mean(-1, keepdim=True) + eps)
    return Dense(gain(layer, normalized, delta).flatten(1).unsqueeze(-1))


@register_rule(_BatchNorm, "weight")
def batch_norm_weight(layer: _BatchNorm, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂gain = Σ_s δ_s · x̂_s by channel, with the running statistics: the layer is in evaluation mode."""
    normalized = functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)
    return _by_channel(normalized * delta)


@register_rule(nn.GroupNorm, "weight")
def group_norm_weight(layer: nn.GroupNorm, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂gain = Σ_s δ_s · x̂_s by channel."""
    return _by_channel(functional.group_norm(inputs, layer.num_groups, eps=layer.eps) * delta)


@register_rule(_BatchNorm, "bias")
@register_rule(nn.GroupNorm, "bias")
def channel_bias(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂bias = Σ_s δ_s by channel."""
    return _by_channel(delta)


def _by_channel(product: Tensor) -> Dense:
    return Dense(product.reshape(*product.shape[:2], -1).sum(2, keepdim=True))


def _as_matrix(layer: nn.LayerNorm | nn.RMSNorm, gradient: Tensor) -> Dense:
    """First axis of the normalised shape out, the others in."""
    return Dense(gradient.reshape(len(gradient), layer.normalized_shape[0], -1))
