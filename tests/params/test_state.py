"""Modes, gradient flags, random state, torch's fast path and hooks are given back after success and failure."""

import copy

import pytest
import torch
from torch import nn

from param_features.gradients.capture import StopForward, capturing
from param_features.params import Site, Tap, held_still
from tests.exits import EXITS, leave, leaving_by
from tests.models import randomised
from tests.oracle import assert_equal_gradients, case_of


@pytest.fixture
def mixed():
    """Children in different modes, parameters with different flags, a dropout layer."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    model.train()
    model[2].eval()
    model[2][1].train()
    model[0].weight.requires_grad_(False)
    model[2][0].bias.requires_grad_(False)
    return model


def state_of(model):
    hooks = [[len(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)] for m in model.modules()]
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        torch.get_rng_state().tolist(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.is_grad_enabled(),
        hooks,
    )


@pytest.mark.parametrize("error", EXITS)
@pytest.mark.parametrize("fast_path", [True, False])
def test_everything_is_as_it_was(mixed, error, fast_path):
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        before = state_of(mixed)
        with leaving_by(error), torch.no_grad(), held_still(mixed):
            assert not any(module.training for module in mixed.modules())
            assert not any(parameter.requires_grad for parameter in mixed.parameters())
            assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.is_grad_enabled()
            torch.randn(3)
            mixed[0].weight.requires_grad_(True)
            mixed[1].train()
            leave(error)
        assert state_of(mixed) == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_statistics_of_batch_norm_are_not_moved(mixed):
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    with held_still(mixed):
        mixed(torch.randn(8, 4) + 5)
    assert all(torch.equal(value, before[name]) for name, value in mixed.state_dict().items())


def taps_of(layer):
    return [Tap(nn.Linear, layer, "weight", Site(layer, 0), Site(layer))]


@pytest.mark.parametrize("error", EXITS)
def test_capturing_leaves_no_hooks(mixed, error):
    before = state_of(mixed)[-1]
    with leaving_by(error), capturing(taps_of(mixed[0]), stop_at=mixed[2]) as capture:
        assert state_of(mixed)[-1] != before
        with pytest.raises(StopForward):
            mixed(torch.randn(2, 4))
        assert capture.outputs[Site(mixed[0])][0].shape == (2, 4)
        leave(error)
    assert state_of(mixed)[-1] == before


def test_hooks_that_were_set_leave_even_when_a_later_one_cannot_be():
    layer, refusing = nn.Linear(2, 2), nn.Linear(2, 2)
    refusing.register_forward_hook = None
    with pytest.raises(TypeError), capturing([*taps_of(layer), *taps_of(refusing)]):
        pass
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks
    assert not refusing._forward_pre_hooks


def test_one_site_may_be_the_input_of_one_parameter_and_the_output_of_another():
    layer, site = nn.Linear(2, 2), Site(nn.Identity())
    taps = [Tap("matrix", layer, "weight", site, Site(layer)), Tap("bias", layer, "bias", Site(layer, 0), site)]
    with capturing(taps) as capture:
        site.module(torch.ones(1, 2))
    assert [tensor.requires_grad for tensor in capture.inputs[site]] == [False]
    assert [tensor.requires_grad for tensor in capture.outputs[site]] == [True]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.lstm(x.unsqueeze(1))[0][:, -1]


@pytest.mark.parametrize("model", ["mixed", "recurrent"])
def test_planning_and_taking_gradients_leave_the_model_as_it_was(model, request):
    model = request.getfixturevalue("mixed") if model == "mixed" else Recurrent()
    before, weights = state_of(model), {name: value.clone() for name, value in model.state_dict().items()}
    objects = [id(parameter) for parameter in model.parameters()]
    case = case_of(model, inputs=torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    case.gradients()
    case.dense(is_vmapped=False).gradients()
    assert state_of(model) == before
    assert [id(parameter) for parameter in model.parameters()] == objects
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    copy.deepcopy(model)


def test_a_recurrent_layer_reads_its_own_weights_afterwards():
    model = Recurrent()
    case_of(model, inputs=torch.randn(3, 4)).gradients()
    assert all(one is two for one, two in zip(model.lstm._flat_weights, model.lstm.parameters(), strict=True))


def test_the_fast_path_of_torchs_encoder_would_skip_taps():
    """In evaluation mode without gradients torch fuses the whole layer; taps inside must see their calls all the same."""
    layer = randomised(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True).double())
    case = case_of(nn.Sequential(layer), "0.linear1.weight", inputs=torch.randn(2, 3, 8).double())
    assert not case.engine.routes.dense
    with torch.no_grad():
        found = case.gradients()[0]
    assert_equal_gradients(found, case.by_autograd())


def test_weights_made_in_inference_mode_keep_their_flags():
    """Torch lets nobody set them again."""
    with torch.inference_mode():
        model = nn.Linear(4, 4)
    with held_still(model), torch.no_grad():
        model(torch.ones(2, 4))
    assert model.weight.requires_grad
    assert model.weight.is_inference()
