"""Tables read by index: `nn.Embedding` and TransformerLens' W_E."""

import torch
from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Indexed


@register_rule("one_hot")
@register_rule(nn.Embedding, "weight")
def table(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Indexed:
    """∂D/∂W = Σ_s δ_s ⊗ onehot(index_s). A padding row gets no gradient, as in torch.

    Raises:
        ValueError: The layer's first argument is no index, as in tables of positions that compute it themselves.
    """
    if inputs.is_floating_point() or inputs.dtype == torch.bool:
        raise ValueError(f"the layer was called with {inputs.dtype}, not with indices")
    index = inputs.reshape(len(inputs), -1)
    delta = delta.reshape(len(delta), index.shape[1], -1)
    padding = getattr(layer, "padding_idx", None)
    if padding is not None:
        delta = delta * (index != padding).unsqueeze(-1)
    return Indexed(delta, index, next(layer.parameters()).shape[0])
