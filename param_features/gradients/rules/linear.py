"""`nn.Linear` and transformers' `Conv1D`: y = W a + b on the last axis; Conv1D stores W transposed."""

from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Dense, Factored


@register_rule("transformers.Conv1D", "weight")
@register_rule(nn.Linear, "weight")
def linear_weight(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Factored:
    """∂D/∂W = Σ_s δ_s ⊗ a_s over every axis between the first and the last."""
    return Factored(_positions(delta), _positions(inputs))


@register_rule("transformers.Conv1D", "bias")
@register_rule(nn.Linear, "bias")
def linear_bias(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂b = Σ_s δ_s."""
    return Dense(_positions(delta).sum(1).unsqueeze(-1))


def _positions(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
