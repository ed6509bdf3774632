"""Every layer of torch with a rule: rule, dense route and a loop of autograd give the same gradients."""

import pytest
from torch import nn

from tests.models import Between, built, integers, normal
from tests.oracle import assert_every_route_agrees, case_of

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
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize(("layer", "x"), LAYERS.values(), ids=LAYERS)
def test_layer_equals_autograd_by_its_rule(layer, x):
    case = case_of(built(Between(layer)), inputs=x)
    assert case.engine.routes.why_dense == {}
    assert_every_route_agrees(case)
