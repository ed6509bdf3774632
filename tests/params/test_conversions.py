"""Layers that a model converts as it runs keep their weights; without that, functorch's tensors in them end the process."""

import torch
from torch import nn

from param_features.params import held_still
from tests.models import built, normal
from tests.oracle import assert_every_route_agrees, case_of


class Converting(nn.Module):
    """Converts a layer to what it is already at each call, beside a Parameter without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        self.layer = self.layer.to(x.dtype)
        return self.scale * self.layer(x).cumsum(1)


def test_gradients_are_right_and_the_weights_stay():
    model = built(Converting())
    before = {name: (id(parameter), parameter.detach().clone()) for name, parameter in model.named_parameters()}
    assert_every_route_agrees(case_of(model, inputs=normal(3, 5, 4)))
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0] and torch.equal(parameter, before[name][1])
    assert all("_apply" not in module.__dict__ for module in model.modules())


def test_conversions_to_another_dtype_are_done():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with held_still(model):
        assert model.to(torch.float32) is model
        model[0].double()
        assert model[0].weight.dtype == torch.float64 and model[1].weight.dtype == torch.float32
        model.half()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert all("_apply" not in module.__dict__ for module in model.modules())
