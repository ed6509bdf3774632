"""Co-active groups: truth by hand, recovery at rank 3, and what must fail."""

import dataclasses

import pytest
import torch

from param_features import toys
from param_features.errors import SettingError, ToyError


@pytest.fixture(scope="module")
def toy():
    return toys.groups(n_inputs=6000, n_steps=2000)


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose()


def test_all_inputs_of_a_group_are_active_together(toy):
    counts = (toy.inputs > 0).unflatten(1, (5, 5)).sum(2)
    assert set(counts.unique().tolist()) == {0, 5}
    assert float((counts == 5).double().mean()) == pytest.approx(0.05, abs=0.01)


def test_a_true_direction_lies_in_its_own_groups_weights(toy):
    assert toy.truth.factors["encode.weight"][0].shape[2] == 5
    torch.testing.assert_close(toy.truth.norm(), torch.ones(5))
    shares = toy.shares(toy.truth)
    torch.testing.assert_close(shares, torch.eye(5), atol=1e-5, rtol=0)


def test_every_group_is_found_at_rank_3_and_the_controls_are_not(toy, fit):
    scores = toy.score(fit)
    assert scores.n_covered == scores.extras["inside"] == 5
    assert scores.mmcs > 0.95
    assert max(scores.shuffled, scores.random) < 0.3
    assert scores.extras["inside_random"] == scores.n_covered_random == 0


def test_rank_1_leaves_more_of_the_gradients(toy, fit):
    assert toy.decompose(rank=1).metrics["reconstruction_error"] > fit.metrics["reconstruction_error"] + 0.05


def test_a_share_of_a_direction_that_lies_in_two_groups_is_no_groups(toy, fit):
    halves = toy.truth.rows([0, 1]).map(lambda tensor: tensor.sum(0, keepdim=True))
    assert float(toy.shares(halves)[0].max()) < 0.9
    assert toy.score(dataclasses.replace(fit, v_out=halves)).extras["inside"] == 0


def test_too_few_features_and_no_fit_fail(toy, fit):
    assert toy.score(toy.decompose(n_features=3)).n_covered <= 3
    assert toy.decompose(steps=1).metrics["reconstruction_error"] > fit.metrics["reconstruction_error"] + 0.05


def test_what_cannot_be_learned_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match=r"of 25 features are left out.*more hidden units than 2"):
        toys.groups(d_hidden=2, n_steps=20)
    with pytest.raises(SettingError, match="rank=6"):
        toys.groups(rank=6)
