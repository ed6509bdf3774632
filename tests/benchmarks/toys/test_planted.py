"""Planted circuits: gates, directions by construction, recovery and what must fail."""

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError
from param_features.measure.agreement import cosines
from param_features.toys.planted_toy import planted_directions


@pytest.fixture(scope="module")
def toy():
    return toys.planted_circuits()


def _markers(toy):
    left, right = toy.truth.factors["encode.weight"]
    return torch.nn.functional.normalize(right[..., 0], dim=1), left[..., 0].argmax(1)


def test_a_gate_opens_at_its_marker_alone(toy):
    markers, units = _markers(toy)
    with torch.no_grad():
        opened = toy.model.encode(markers)[:, units] > 0
        nothing = toy.model.encode(torch.zeros(1, 20))[:, units] > 0
    assert torch.equal(opened, torch.eye(10, dtype=torch.bool))
    assert not nothing.any()


def test_the_planted_direction_is_the_gradient_but_for_the_random_weights():
    toy = toys.planted_circuits(noise=0.0)
    markers, _ = _markers(toy)
    writes = toy.truth.factors["decode.weight"][0][..., 0]
    gradients = planted_directions(toy.model, toy.params, 1.5 * markers, torch.nn.functional.normalize(writes, dim=1))
    # Other circuits' writes are not orthogonal, but their gates are closed.
    torch.testing.assert_close(cosines(toy.truth, gradients).diagonal(), torch.ones(10, dtype=torch.float64))


@pytest.mark.release
def test_circuits_are_found_and_the_controls_are_not(toy):
    scores = toy.score(toy.decompose())
    assert scores.n_covered == scores.n_true == 10
    assert scores.mmcs > 0.95
    assert max(scores.shuffled, scores.random) < 0.3
    assert scores.n_covered_shuffled == scores.n_covered_random == 0


@pytest.mark.release
def test_too_few_features_and_no_fit_fail(toy):
    assert toy.score(toy.decompose(n_features=5)).n_covered <= 5
    assert toy.score(toy.decompose(steps=1)).mmcs < 0.9


@pytest.mark.release
def test_another_networks_circuits_are_not_found(toy):
    other = toys.planted_circuits(seed=1)
    fit = other.decompose(steps=500)
    assert toy.score(fit).n_covered == 0
    assert toy.score(fit).mmcs < 0.5 < other.score(fit).mmcs


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="n_circuits=21"):
        toys.planted_circuits(21)
