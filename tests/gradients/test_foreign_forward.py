"""A rule that a layer inherits holds where it runs that class's forward, or where float64 shows that it does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.adapters.zoo import assert_same, snapshot
from tests.models import randomised
from tests.oracle import case_of

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OTHER = {
    "scaled": lambda y, layer: 0.95 * y,
    "weight added": lambda y, layer: y + 0.05 * layer.weight.sum(),
    "tanh after": lambda y, layer: torch.tanh(y),
    "scaled a little": lambda y, layer: 1.0005 * y,
}
HARMLESS = {"called through": lambda y, layer: y, "extra bias": lambda y, layer: y + 0.3}


def subclassed(change) -> nn.Module:
    return type(
        "Sub", (nn.Linear,), {"forward": lambda self, x: change(functional.linear(x, self.weight, self.bias), self)}
    )(4, 3)


def patched(change) -> nn.Module:
    layer = nn.Linear(4, 3)
    inherited = layer.forward
    layer.forward = lambda x: change(inherited(x), layer)
    return layer


def case(layer: nn.Module, dtype: torch.dtype, scale: float = 1.0):
    inputs = scale * torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return case_of(randomised(nn.Sequential(layer, nn.Linear(3, 3))).to(dtype), inputs=inputs.to(dtype), params="0.weight")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [subclassed, patched])
@pytest.mark.parametrize("change", OTHER)
def test_another_forward_is_found_out_in_every_dtype(change, make, dtype):
    found = case(make(OTHER[change]), dtype, 0.01 if change == "tanh after" else 1.0)
    assert found.engine.routes.taps == {}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [subclassed, patched])
@pytest.mark.parametrize("change", HARMLESS)
def test_a_harmless_one_keeps_its_rule_and_the_model_stays_as_it_is(change, make, dtype):
    layer = make(HARMLESS[change])
    found = case(layer, dtype)
    assert set(found.engine.routes.taps) == {"0.weight"}
    before = snapshot(layer)
    case_of(nn.Sequential(layer), inputs=torch.ones(3, 4, dtype=dtype), params="0.weight")
    assert_same(before, snapshot(layer))


class RMSNorm(nn.Module):
    """A library's own norm, whose output is scaled."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight, self.scale, self.eps = nn.Parameter(torch.ones(4)), scale, 1e-6

    def forward(self, x):
        wide = x.float()
        normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.scale * self.weight * normal.to(x.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "is_ruled"), [(1.0, True), (0.95, False)])
def test_a_norm_that_is_known_by_its_name_alone(scale, is_ruled, dtype):
    model = nn.Sequential(RMSNorm(scale), nn.Linear(4, 3)).to(dtype)
    found = case_of(model, inputs=torch.randn(3, 4, dtype=dtype), params="0.weight")
    assert (set(found.engine.routes.taps) == {"0.weight"}) == is_ruled


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("make", [subclassed, patched])
def test_the_gradients_of_a_scaled_layer_are_autograds(make, dtype):
    found = case(make(OTHER["scaled"]), dtype)
    (given,), (right,) = found.gradients()[0].values(), found.by_autograd().values()
    assert (given.float() - right.float()).norm() <= 0.02 * right.float().norm()
