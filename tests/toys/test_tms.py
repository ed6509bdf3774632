"""Toys of superposition: truth by hand, recovery against it, and controls that must fail."""

import dataclasses

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError, ToyError
from param_features.toys.tms import Tied, Untied

pytestmark = pytest.mark.slow

QUICK = {"n_steps": 600, "n_inputs": 2000}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def toy(request):
    return toys.superposition(**QUICK, is_tied=request.param)


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose(steps=500)


def test_every_feature_is_represented(toy):
    with torch.no_grad():
        assert (toy.model(torch.eye(5)).diagonal() > 0.5).all()
    assert isinstance(toy.model, Tied if "untied" not in toy.name else Untied)
    assert toy.n_true == 5


def test_the_planted_direction_is_the_features_column_and_row(toy):
    dense = toy.truth.materialize()
    torch.testing.assert_close(toy.truth.norm(), torch.ones(5))
    for feature in range(5):
        if "weight" in dense:
            expected = torch.zeros(2, 5)
            expected[:, feature] = toy.model.weight.detach()[:, feature]
            found = dense["weight"][feature]
        else:
            encode, decode = torch.zeros(2, 5), torch.zeros(5, 2)
            encode[:, feature] = toy.model.decode.weight.detach()[feature]
            decode[feature] = toy.model.encode.weight.detach()[:, feature]
            expected = torch.cat([encode.flatten(), decode.flatten()])
            found = torch.cat([dense["encode.weight"][feature].flatten(), dense["decode.weight"][feature].flatten()])
        torch.testing.assert_close(found, expected / expected.norm())


def test_features_are_found_and_the_controls_are_not(toy, fit):
    scores = toy.score(fit)
    assert scores.n_covered == scores.n_true == 5
    assert scores.mmcs > 0.95
    assert scores.shuffled < 0.8
    assert scores.random < 0.8
    assert scores.dead == 0
    assert scores.n_covered_shuffled < 2.5 and scores.n_covered_random < 1  # two rows: a shuffle may move nothing
    assert "5 of 5 covered" in repr(scores)
    assert scores.numbers["mmcs"] == scores.mmcs
    assert scores.numbers["covered_random"] == scores.n_covered_random
    assert scores.numbers["l0"] == toy.l0


def test_the_planted_directions_themselves_score_1(toy, fit):
    scores = toy.score(fit.with_directions(toy.truth.rows([4, 2, 0, 1, 3]), fit.v_in))
    assert scores.mmcs == pytest.approx(1)
    assert scores.n_covered == 5


def test_the_callers_changes_win_over_the_toys_settings(toy):
    eager = dataclasses.replace(toy, settings={"steps": 2, "l0": 0.6}).decompose(l0=0.8)
    assert (eager.config["steps_done"], eager.config["l0"]) == (2, 0.8)


def test_a_fit_with_too_few_features_cannot_cover_the_truth(toy):
    scores = toy.score(toy.decompose(n_features=3, l0=0.4, steps=300))
    assert scores.n_covered <= 3
    assert scores.mmcs < 0.62


def test_what_was_not_fitted_is_not_found(toy, fit):
    assert toy.score(toy.decompose(steps=1)).mmcs < toy.score(fit).mmcs - 0.05


@pytest.mark.release
def test_forty_features_in_ten_hidden_units():
    toy = toys.superposition(40, 10, n_inputs=4000)
    scores = toy.score(toy.decompose(n_features=48))
    assert scores.n_covered >= 36
    assert scores.mmcs > 0.9
    assert scores.shuffled < 0.5
    assert scores.random < 0.5


def test_the_same_arguments_give_the_same_toy_and_the_users_generator_is_left_alone():
    before = torch.get_rng_state()
    settings = {"n_steps": 50, "n_inputs": 20, "probability": 0.3, "seed": 7}
    first = toys.superposition(2, 2, **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert toys.superposition(2, 2, **settings) is first
    toys.superposition.cache_clear()
    again = toys.superposition(2, 2, **settings)
    assert again is not first
    assert torch.equal(again.inputs, first.inputs)
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_model_that_cannot_represent_every_feature_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match=r"After 2 starts, at least \d+ of 12 features.*more hidden units"):
        toys.superposition(12, 1, n_steps=20)


@pytest.mark.parametrize("bad", [{"probability": 0.0}, {"probability": 1.0}, {"n_steps": 0}, {"d_hidden": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        toys.superposition(**bad)
