"""The linear map: truth by hand, the recovered map against the model's own, and controls that must fail."""

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.linear_map import r_squared
from param_features.errors import SettingError
from param_features.toys.planted_toy import probe_gradients, unit_directions

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def toy():
    return toys.linear_map(n_steps=1000, n_inputs=4000)


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose()


def test_the_planted_direction_is_the_products_by_hand(toy):
    dense = toy.truth.materialize()
    encode, decode = toy.model.encode.weight.detach(), toy.model.decode.weight.detach()
    for feature in range(10):
        into = torch.zeros(5, 10)
        into[:, feature] = decode.T @ toy.A[:, feature]
        out = torch.outer(toy.A[:, feature], encode[:, feature])
        norm = (into.square().sum() + out.square().sum()).sqrt()
        torch.testing.assert_close(dense["encode.weight"][feature], into / norm, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(dense["decode.weight"][feature], out / norm, rtol=1e-4, atol=1e-5)


def test_features_and_map_are_found_and_the_controls_are_not(toy, fit):
    scores = toy.score(fit)
    assert scores.n_covered == 10
    assert scores.mmcs > 0.95
    assert scores.shuffled < 0.5 and scores.random < 0.4
    assert scores.extras["r2"] > 0.9
    assert scores.extras["r2_random"] < 0
    assert "r2" in repr(scores)


def test_the_recovered_map_of_the_exact_gradients_is_the_models_own(toy, fit):
    """Each unit input's own gradient as its feature: the map comes back without error."""
    units = torch.eye(10)
    outputs = toy.model(units).detach()
    exact = unit_directions(probe_gradients(toy.model, toy.params, units, 2 * outputs), 1)
    found = toys.recovered_map(toy, fit.with_directions(exact))
    torch.testing.assert_close(found, toy.model.map(), rtol=1e-3, atol=1e-3)
    assert r_squared(found, toy.model.map()) > 0.999
    assert r_squared(found.roll(1, 1), toy.model.map()) < 0.5


def test_what_was_not_fitted_is_not_found(toy, fit):
    assert toy.score(toy.decompose(n_features=4, l0=0.5)).n_covered <= 4
    assert toy.score(toy.decompose(steps=1)).mmcs < toy.score(fit).mmcs


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="probability=0"):
        toys.linear_map(probability=0.0)
