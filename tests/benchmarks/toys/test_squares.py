"""Squares through four layers: every input represented, rank-2 circuits found, and what must fail."""

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError, ToyError
from param_features.measure.agreement import cosines
from param_features.toys.planted_toy import principal_gradient, probe_gradients, unit_directions

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def toy():
    return toys.squares(n_inputs=3000)


@pytest.fixture(scope="module")
def fit(toy):
    return toy.decompose(steps=600)


def test_every_input_is_squared(toy):
    sizes = torch.linspace(-1, 1, 21)
    for i, unit in enumerate(torch.eye(5)):
        with torch.no_grad():
            rest = toy.model(sizes[:, None] * unit)[:, i] - sizes.square()
        assert rest.square().mean() < 0.3 * sizes.square().var()


def test_the_true_directions_are_of_rank_2_and_differ(toy):
    assert toy.truth.factors["layers.2.weight"][0].shape == (5, 5, 2)
    torch.testing.assert_close(toy.truth.norm(), torch.ones(5))
    others = cosines(toy.truth, toy.truth) - torch.eye(5)
    assert float(others.abs().max()) < 0.8


def test_one_gradient_is_its_own_principal_direction(toy):
    gradients = probe_gradients(toy.model, toy.params, torch.eye(5)[:1], torch.eye(5)[:1])
    one, own = unit_directions(principal_gradient(gradients), 5), unit_directions(gradients, 5)
    assert float(cosines(one, own).abs()) == pytest.approx(1, abs=1e-5)


def test_circuits_are_found_and_the_controls_are_not(toy, fit):
    scores = toy.score(fit)
    assert scores.n_covered == 5
    assert scores.mmcs > 0.95
    assert scores.error <= 0.15
    assert max(scores.shuffled, scores.random) < 0.5
    assert scores.n_covered_shuffled == scores.n_covered_random == 0
    assert scores.extras["told"] > scores.extras["told_random"]


def test_activations_of_other_inputs_features_do_not_tell_an_input(toy, fit):
    scores = toy.score(fit)
    turned = fit.with_directions(fit.v_out, fit.v_in.rows([1, 2, 3, 4, 0]))
    assert toy.score(turned).extras["auroc"] < scores.extras["auroc"] - 0.2


def test_too_few_features_and_no_fit_fail(toy):
    assert toy.score(toy.decompose(n_features=3, steps=300)).n_covered <= 3
    unfitted = toy.score(toy.decompose(steps=1))
    assert unfitted.n_covered <= 3
    assert unfitted.error > 0.15


def test_what_cannot_be_learned_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match="of 5 features are left out.*more n_steps"):
        toys.squares(n_steps=1)
    with pytest.raises(SettingError, match="probability=0"):
        toys.squares(probability=0.0)
