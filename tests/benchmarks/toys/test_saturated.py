"""Saturated outputs: the closed forms against the model itself, and where attribution misleads."""

import copy
from itertools import chain, combinations

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError

SETS = list(chain.from_iterable(combinations(range(4), n) for n in range(5)))


@pytest.fixture(scope="module")
def toy():
    return toys.saturated()


@pytest.fixture(scope="module")
def inputs(toy):
    return toy.inputs[:50].double()


def _parts(toy):
    return toy.strengths.double()[:, None, None] * toy.planted.materialize()["encode.weight"].double()


def _model(toy, weight):
    """The metric of a model with another weight."""
    model = copy.deepcopy(toy.model).double()
    return lambda x: toy.metric()(torch.func.functional_call(model, {"encode.weight": weight}, (x,)))


def test_the_weight_is_the_sum_of_orthonormal_planted_directions(toy):
    torch.testing.assert_close(toy.planted.gram(), torch.eye(4), atol=1e-6, rtol=0)
    torch.testing.assert_close(_parts(toy).sum(0).float(), toy.model.encode.weight.detach())


@pytest.mark.parametrize("removed", SETS)
def test_the_exact_effect_is_what_zeroing_shows(toy, inputs, removed):
    parts = _parts(toy)
    kept = [k for k in range(4) if k not in removed]
    lost = _model(toy, parts.sum(0))(inputs) - _model(toy, parts[kept].sum(0))(inputs)
    torch.testing.assert_close(toy.effect(removed, inputs), lost, atol=1e-5, rtol=0)


def _slopes(toy, weight, x):
    """⟨∂metric/∂W, strength_k v_k⟩ at a given weight, by autograd, one input."""
    weight = weight.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_model(toy, weight)(x[None])[0], weight)
    return (_parts(toy) * gradient).sum((1, 2))


def test_attribution_is_the_gradients(toy, inputs):
    for x in inputs[:5]:
        found = toy.attribution(x[None])[0]
        torch.testing.assert_close(found, _slopes(toy, _parts(toy).sum(0), x), atol=1e-5, rtol=0)


def test_integrated_gradients_are_the_mean_of_the_gradients_on_the_way(toy, inputs):
    n = 400
    for x in inputs[:2]:
        way = [_slopes(toy, (step + 0.5) / n * _parts(toy).sum(0), x) for step in range(n)]
        torch.testing.assert_close(toy.integrated(x[None])[0], torch.stack(way).mean(0), atol=1e-4, rtol=0)


def test_integrated_over_a_features_own_removal_is_its_exact_effect(toy, inputs):
    parts, n = _parts(toy), 400
    for feature in range(4):
        rest = parts.sum(0) - parts[feature]
        way = [_slopes(toy, rest + (step + 0.5) / n * parts[feature], inputs[0])[feature] for step in range(n)]
        exact = toy.effect([feature], inputs[:1])[0]
        torch.testing.assert_close(torch.stack(way).mean(), exact, atol=1e-4, rtol=0)


def test_attribution_misleads_and_integrated_gradients_repair_it(toy, inputs):
    exact = torch.stack([toy.effect([k], inputs) for k in range(4)], 1).mean(0)
    attribution, integrated = toy.attribution(inputs).mean(0), toy.integrated(inputs).mean(0)
    assert exact.argmax() == integrated.argmax() == 0
    assert attribution.argmax() == 3
    assert exact[0] > 0.99 and attribution[0] < 0.01
    assert torch.corrcoef(torch.stack([attribution, exact]))[0, 1] < 0.5
    assert torch.corrcoef(torch.stack([integrated, exact]))[0, 1] > 0.8


def test_two_features_matter_together_though_neither_does_alone(toy, inputs):
    assert max(toy.effect([k], inputs).max() for k in (1, 2)) < 0.001
    assert toy.attribution(inputs)[:, 1:3].max() < 0.001
    assert toy.effect([1, 2], inputs).min() > 0.99
    torch.testing.assert_close(toy.integrated(inputs)[:, 1:3].sum(1), toy.effect([1, 2], inputs))


def test_integrated_gradients_add_up_to_what_all_features_do(toy, inputs):
    torch.testing.assert_close(toy.integrated(inputs).sum(1), toy.effect(range(4), inputs))


def test_planted_features_can_be_ablated_as_fitted_ones_are(toy):
    features, x = toy.planted_features(), toy.inputs[:20]
    whole = toy.metric()(toy.model(x))
    with torch.no_grad(), features.ablate([1, 2]):
        left = toy.metric()(toy.model(x))
    torch.testing.assert_close(whole - left, toy.effect([1, 2], x), atol=1e-5, rtol=0)
    assert not features.metrics


def test_what_is_out_of_range_is_refused(toy):
    with pytest.raises(SettingError, match="numbered 0 to 3"):
        toy.effect([4], toy.inputs)
    with pytest.raises(SettingError, match="weak=5 must lie between 0 and strength"):
        toys.saturated(weak=5)
