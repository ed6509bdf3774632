"""Forward mode and backward passes agree on models that compute part of their output under `torch.no_grad()`."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.gradients import output_changes
from tests.models import built, normal
from tests.oracle import case_of

CALL = {"n_features": 2, "l0": 1, "steps": 2, "progress": False}


class Truncated(nn.Module):
    """A recurrence of which the last step alone is trained, with a table that is looked up by a decorated function."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    @torch.no_grad()
    def start(self, x):
        return torch.tanh(self.layer(x)), [self.layer(x).sigmoid()]

    def forward(self, x):
        state, (gate,) = self.start(x)
        return self.out(torch.tanh(self.layer(x + state) * gate))


def test_the_change_of_the_output_is_that_of_the_trained_part():
    case = case_of(built(Truncated()), "layer.weight", inputs=normal(3, 4))
    direction = normal(1, 4, 4)
    found = output_changes(case.engine, {"layer.weight": direction}, case.data)[0]
    expected = torch.autograd.functional.jacobian(_of_weight(case), case.model.layer.weight.detach())
    torch.testing.assert_close(found, torch.einsum("npoi,oi->np", expected, direction[0]))


def _of_weight(case):
    def run(weight):
        return torch.func.functional_call(case.model, {"layer.weight": weight}, case.data.args)

    return run


@pytest.mark.parametrize("param", ["layer.weight", "layer.bias", "out.weight"])
def test_both_routes_to_activations_agree(param):
    features = pf.decompose(built(Truncated()), param, inputs=normal(60, 4), **CALL)
    by_route = [features.activations(inputs=normal(5, 4), route=route) for route in ("vjp", "jvp")]
    torch.testing.assert_close(*by_route)
