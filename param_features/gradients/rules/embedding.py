"""Tables read by index: `nn.Embedding` and TransformerLens' W_E."""

from torch import Tensor, nn

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Indexed


@register_rule("one_hot")
@register_rule(nn.Embedding, "weight")
def table(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Indexed:
    """∂D/∂W = Σ_s δ_s ⊗ onehot(index_s). A padding row gets no gradient, as in torch."""
    index = inputs.reshape(len(inputs), -1)
    delta = delta.reshape(len(delta), index.shape[1], -1)
    padding = getattr(layer, "padding_idx", None)
    if padding is not None:
        delta = delta * (index != padding).unsqueeze(-1)
    return Indexed(delta, index, next(layer.parameters()).shape[0])
