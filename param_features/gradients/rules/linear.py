"""`nn.Linear` and transformers' `Conv1D`: y = W a + b on the last axis; Conv1D stores W transposed."""

from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Dense, Factored


@register_rule("transformers.Conv1D", "weight")
@register_rule(nn.Linear, "weight")
def linear_weight(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Factored:
    """∂D/∂W = Σ_s δ_s ⊗ a_s over every axis between the first and the last."""
    return Factored(by_position(delta), by_position(inputs))


@register_rule("transformers.Conv1D", "bias")
@register_rule(nn.Linear, "bias")
def linear_bias(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂b = Σ_s δ_s."""
    return Dense(by_position(delta).sum(1).unsqueeze(-1))


def by_position(tensor: Tensor) -> Tensor:
    """All axes between the first and the last as one; one position where there are none."""
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
