"""Every layer of torch with a rule: rule, dense route and a loop of autograd give the same gradients."""

import pytest
import torch
from torch import nn

from param_features.gradients.rules import required_rule
from tests.models import Between, built, integers, normal
from tests.oracle import assert_every_route_agrees, case_of


class MyRMSNorm(nn.Module):
    """A library's own RMSNorm, which calls its epsilon as that library does."""

    def __init__(self, name: str, eps: float) -> None:
        super().__init__()
        self.weight, self.name = nn.Parameter(torch.zeros(5)), name
        setattr(self, name, eps)

    def forward(self, x):
        return self.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + getattr(self, self.name))

    @property
    def gain(self):
        return self.weight


class OnePlusRMSNorm(MyRMSNorm):
    """Gemma's: multiplies by 1 plus its weight."""

    @property
    def gain(self):
        return 1 + self.weight


def trained(norm: nn.Module) -> nn.Module:
    """With running statistics as after training, neither 0 nor 1."""
    generator = torch.Generator().manual_seed(7)
    norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.3)
    return norm


LAYERS = {
    "linear": (nn.Linear(5, 3), normal(4, 5)),
    "linear on a sequence": (nn.Linear(5, 3), normal(4, 6, 5)),
    "linear on a grid": (nn.Linear(5, 3), normal(4, 2, 3, 5)),
    "linear without bias": (nn.Linear(5, 3, bias=False), normal(4, 5)),
    "embedding": (nn.Embedding(7, 3), integers(7, 4, 6)),
    "embedding of one id": (nn.Embedding(7, 3), integers(7, 4)),
    "embedding with padding": (nn.Embedding(4, 3, padding_idx=1), integers(4, 4, 6)),
    "conv1d": (nn.Conv1d(2, 4, 3), normal(3, 2, 9)),
    "conv1d strided, padded, dilated": (nn.Conv1d(2, 4, 3, stride=2, padding=2, dilation=2), normal(3, 2, 9)),
    "conv1d same": (nn.Conv1d(2, 4, 4, padding="same"), normal(3, 2, 9)),
    "conv1d circular": (nn.Conv1d(2, 4, 3, padding=1, padding_mode="circular"), normal(3, 2, 9)),
    "conv1d in groups": (nn.Conv1d(4, 6, 3, groups=2), normal(3, 4, 9)),
    "conv2d": (nn.Conv2d(2, 4, (3, 2)), normal(3, 2, 6, 5)),
    "conv2d strided, padded, dilated": (
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 3)),
        normal(3, 2, 6, 5),
    ),
    "conv2d same": (nn.Conv2d(2, 4, (3, 2), padding="same"), normal(3, 2, 6, 5)),
    "conv2d same, reflected": (nn.Conv2d(2, 4, (4, 2), padding="same", padding_mode="reflect"), normal(3, 2, 6, 5)),
    "conv2d circular": (nn.Conv2d(2, 4, (3, 2), padding=(2, 1), padding_mode="circular"), normal(3, 2, 6, 5)),
    "conv2d depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), normal(3, 4, 5, 5)),
    "layer norm": (nn.LayerNorm(5), normal(4, 5)),
    "layer norm on a sequence": (nn.LayerNorm(5), normal(4, 6, 5)),
    "layer norm of three axes": (nn.LayerNorm((2, 3, 5)), normal(4, 6, 2, 3, 5)),
    "layer norm of everything": (nn.LayerNorm((6, 5)), normal(4, 6, 5)),
    "layer norm without bias": (nn.LayerNorm(5, bias=False), normal(4, 6, 5)),
    "rms norm": (nn.RMSNorm(5), normal(4, 6, 5)),
    "rms norm of two axes": (nn.RMSNorm((3, 5), eps=0.1), normal(4, 6, 3, 5)),
    "foreign rms norm, eps": (MyRMSNorm("eps", 0.2), normal(4, 6, 5)),
    "foreign rms norm, variance_epsilon": (MyRMSNorm("variance_epsilon", 0.2), normal(4, 6, 5)),
    "foreign rms norm without positions": (MyRMSNorm("eps", 0.2), normal(4, 5)),
    "foreign rms norm of 1 + w": (OnePlusRMSNorm("eps", 0.2), normal(4, 6, 5)),
    "batch norm": (trained(nn.BatchNorm1d(5)), normal(4, 5)),
    "batch norm on sequences": (trained(nn.BatchNorm1d(5, eps=0.2)), normal(4, 5, 6)),
    "batch norm on images": (trained(nn.BatchNorm2d(3, eps=0.2)), normal(4, 3, 5, 6)),
    "group norm": (nn.GroupNorm(2, 4), normal(4, 4)),
    "group norm on sequences": (nn.GroupNorm(2, 4, eps=0.2), normal(4, 4, 6)),
    "group norm on images": (nn.GroupNorm(3, 6), normal(4, 6, 2, 5)),
    "group norm of every channel alone": (nn.GroupNorm(4, 4), normal(4, 4, 6)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_layer_equals_autograd_by_its_rule(layer, x):
    case = case_of(built(Between(layer)), inputs=x)
    assert case.engine.routes.why_dense == {}
    assert_every_route_agrees(case)


@pytest.mark.parametrize("x", [normal(4, 5), normal(4, 6, 5), normal(4, 2, 3, 5)], ids=["rows", "sequence", "grid"])
def test_transformers_conv1d_equals_autograd_by_its_rule(x):
    """A linear layer whose weight is stored [d_in, d_out]."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    case = case_of(built(Between(conv1d(3, 5))), inputs=x)
    assert case.engine.routes.why_dense == {}
    assert case.engine.subset["layer.weight"].matrix_shape == (3, 5)
    assert_every_route_agrees(case)


def test_a_foreign_rms_norm_that_does_something_else_is_watched_at_its_operations():
    class CentringRMSNorm(MyRMSNorm):
        def forward(self, x):
            return super().forward(x - x.mean(-1, keepdim=True))

    case = case_of(built(Between(CentringRMSNorm("eps", 0.2))), inputs=normal(4, 6, 5))
    assert set(case.engine.routes.watched) == {"layer.weight"}
    assert_every_route_agrees(case)


def test_the_rule_of_transformers_conv1d_is_found_by_name():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    assert required_rule(conv1d, "weight") is required_rule(nn.Linear, "weight")
