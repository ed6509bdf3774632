"""Rules by name, for adapters whose taps lie around one operation: matrix, bias, gain."""

import torch
from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Dense, Factored


@register_rule("matrix")
def matrix(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Factored:
    """Σ_s δ_s ⊗ a_s with tensors [batch pos ...]: heads and other trailing axes fold into d_out and d_in."""
    return Factored(delta.flatten(2), inputs.flatten(2))


@register_rule("heads")
def heads(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Factored:
    """As `matrix`, to outputs [batch pos head d_head], from one input [batch pos d_in] or one of each head.

    TransformerLens splits inputs like that, [batch pos head d_in], when told to. Each head then counts as a position, with
    zeros for the others.
    """
    if inputs.dim() == 3:
        return Factored(delta.flatten(2), inputs)
    of_head = torch.eye(delta.shape[2], dtype=delta.dtype, device=delta.device)
    return Factored((delta.unsqueeze(3) * of_head.unsqueeze(2)).flatten(3).flatten(1, 2), inputs.flatten(1, 2))


@register_rule("bias")
def bias(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """Σ_s δ_s with tensors [batch pos ...]: heads and other trailing axes fold into d_out."""
    rows = delta.flatten(2) if delta.dim() > 2 else delta.unsqueeze(1)
    return Dense(rows.sum(1).unsqueeze(-1))


@register_rule("gain")
def gain_matrix(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """Σ_s δ_s · x̂_s, where the input is already normalised."""
    return Dense(gain(layer, inputs, delta).flatten(1).unsqueeze(-1))


@register_rule("shift")
def shift(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """Σ_s δ_s, for the bias of a norm over the last axis: heads count as positions."""
    return Dense(gain(layer, torch.ones_like(delta), delta).flatten(1).unsqueeze(-1))


def gain(layer: nn.Module, normalized: Tensor, delta: Tensor) -> Tensor:
    """Σ over the positions (all axes between the batch and the parameter's own) of δ · x̂."""
    n_own = len(getattr(layer, "normalized_shape", (0,)))
    product = normalized * delta
    between = tuple(range(1, product.dim() - n_own))
    return product.sum(between) if between else product
