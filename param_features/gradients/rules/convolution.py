"""`nn.Conv1d` and `nn.Conv2d`: a linear map of each unfolded patch."""

from torch import Tensor, nn
from torch.nn import functional

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Dense, Factored


@register_rule(nn.Conv2d, "weight")
def conv2d_weight(layer: nn.Conv2d, inputs: Tensor, delta: Tensor) -> Factored | Dense:
    """∂D/∂W = Σ_s δ_s ⊗ patch_s over the output's places; groups give a matrix each."""
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=_pad_mode(layer.padding_mode))
    patches = functional.unfold(padded, layer.kernel_size, layer.dilation, stride=layer.stride).mT
    return _grouped(layer.groups, delta.flatten(2).mT, patches)


@register_rule(nn.Conv1d, "weight")
def conv1d_weight(layer: nn.Conv1d, inputs: Tensor, delta: Tensor) -> Factored | Dense:
    """As `conv2d_weight`, with one axis."""
    padded = functional.pad(inputs, layer._reversed_padding_repeated_twice, mode=_pad_mode(layer.padding_mode))
    (kernel,), (dilation,), (stride,) = layer.kernel_size, layer.dilation, layer.stride
    patches = functional.unfold(padded.unsqueeze(2), (1, kernel), (1, dilation), stride=(1, stride)).mT
    return _grouped(layer.groups, delta.mT, patches)


@register_rule(nn.Conv2d, "bias")
@register_rule(nn.Conv1d, "bias")
def convolution_bias(layer: nn.Module, inputs: Tensor, delta: Tensor) -> Dense:
    """∂D/∂b = Σ_s δ_s; the channels are the second axis."""
    return Dense(delta.flatten(2).sum(2).unsqueeze(-1))


def _pad_mode(mode: str) -> str:
    return "constant" if mode == "zeros" else mode


def _grouped(n_groups: int, delta: Tensor, patches: Tensor) -> Factored | Dense:
    """Each group of output channels sees its own input channels: rows [out, in / groups]."""
    if n_groups == 1:
        return Factored(delta, patches)
    out, into = delta.unflatten(2, (n_groups, -1)), patches.unflatten(2, (n_groups, -1))
    return Dense((out.permute(0, 2, 3, 1) @ into.permute(0, 2, 1, 3)).flatten(1, 2))
