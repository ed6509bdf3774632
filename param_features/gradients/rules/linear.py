"""`nn.Linear`: y = W a + b on the last axis."""

from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Factored


@register_rule(nn.Linear, "weight")
def linear_weight(layer: nn.Linear, inputs: Tensor, delta: Tensor) -> Factored:
    """∂D/∂W = Σ_s δ_s ⊗ a_s over every axis between the first and the last."""
    return Factored(_positions(delta), _positions(inputs))


def _positions(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
