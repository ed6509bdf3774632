"""The linear map in superposition: truth by hand, the recovered map, and what must fail."""

import dataclasses

import pytest
import torch

from param_features import toys
from param_features.errors import SettingError, ToyError
from param_features.toys.linear_map import r_squared

QUICK = {"n_steps": 1500, "n_inputs": 6000}


@pytest.fixture(scope="module")
def toy():
    return toys.linear_map(**QUICK)


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose()


def test_a_planted_direction_is_a_column_into_the_hidden_layer_and_an_outer_product_out_of_it(toy):
    W_in, W_out = toy.model.encode.weight.detach(), toy.model.decode.weight.detach()
    dense = toy.truth.materialize()
    for i in range(10):
        into = torch.outer(W_out.T @ toy.A[:, i], torch.eye(10)[i])
        out = torch.outer(toy.A[:, i], W_in[:, i])
        norm = torch.cat([into.flatten(), out.flatten()]).norm()
        torch.testing.assert_close(dense["encode.weight"][i], into / norm, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dense["decode.weight"][i], out / norm, atol=1e-5, rtol=1e-4)


def test_features_are_found_and_the_controls_are_not(toy, fit):
    scores = toy.score(fit)
    assert scores.n_covered == 10
    assert scores.error < 0.064
    assert max(scores.shuffled, scores.random) < 0.5
    assert scores.n_covered_random == 0
    assert scores.numbers["r2"] > 0.6 > 0 > scores.numbers["r2_random"]


def test_features_that_rebuild_the_gradients_exactly_hold_the_models_map_exactly(toy, fit):
    units, own = torch.eye(10), toy.model.map()
    exact = toys.planted_toy.planted_directions(toy.model, toy.params, units, own.T)
    recovered = toys.recovered_map(toy, dataclasses.replace(fit, v_in=exact, v_out=exact))
    torch.testing.assert_close(recovered, own, atol=1e-4, rtol=1e-4)
    assert r_squared(recovered, own) == pytest.approx(1, abs=1e-5)


def test_the_recovered_map_is_of_the_features_alone(toy, fit):
    halved = dataclasses.replace(fit, v_in=fit.v_in.map(lambda tensor: tensor / 2**0.5))
    torch.testing.assert_close(toys.recovered_map(toy, halved), toys.recovered_map(toy, fit) / 2)


def test_too_few_features_and_no_fit_fail(toy, fit):
    few = toy.score(toy.decompose(n_features=5))
    assert few.n_covered <= 5
    assert few.extras["r2"] < toy.score(fit).extras["r2"]
    assert toy.score(toy.decompose(steps=1)).error > 0.2


def test_what_cannot_be_learned_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match="more hidden units than 1"):
        toys.linear_map(10, 1, n_steps=3)
    with pytest.raises(SettingError, match="probability=1"):
        toys.linear_map(probability=1.0)
