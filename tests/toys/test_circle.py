"""The circle: concentration by hand, local features, and what must fail."""

import math

import pytest
import torch

from param_features import toys
from param_features.errors import SettingError, ToyError
from param_features.toys.circle import concentration


@pytest.fixture(scope="module")
def toy():
    return toys.circle(n_steps=1500, n_inputs=2000)


def test_concentration_by_hand():
    angles = torch.arange(360) * (2 * math.pi / 360)
    one, two = torch.zeros(360), torch.zeros(360)
    one[40], two[[40, 220]] = 3.0, 1.0
    weights = torch.stack([one, two, torch.ones(360), 1 + angles.cos(), torch.zeros(360)], 1)
    torch.testing.assert_close(concentration(weights), torch.tensor([1.0, 1.0, 0.0, 0.5, 0.0]), atol=1e-4, rtol=0)


def test_the_inputs_are_a_bent_circle_that_the_model_rebuilds(toy):
    x = toy.by_angle
    assert int((torch.linalg.svdvals(x - x.mean(0)) > 0.5).sum()) > 4  # a flat circle has two
    steps = (x - x.roll(1, 0)).norm(dim=1)
    assert float(steps.max()) < 1
    with torch.no_grad():
        assert float((toy.model(x) - x).square().mean()) < 0.1


def test_features_are_more_local_than_random_directions_and_cover_the_circle(toy):
    scores = toy.score(toy.decompose())
    assert scores.locality > 0.8
    assert scores.locality > scores.random + 0.1
    assert scores.coverage > 0.5
    assert scores.error < 0.1 < 0.8 < scores.error_random
    assert scores.numbers["locality"] == scores.locality
    assert "locality" in repr(scores)


def test_one_feature_cannot_cover_the_circle_and_no_fit_rebuilds_it_less(toy):
    assert toy.score(toy.decompose(n_features=1, l0=1, steps=50)).coverage == pytest.approx(1 / 12)
    assert toy.score(toy.decompose(steps=1)).error > toy.score(toy.decompose(steps=200)).error


def test_what_cannot_be_learned_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match="more hidden units than 1"):
        toys.circle(d_hidden=1, n_steps=3)
    with pytest.raises(SettingError, match="d_hidden=0"):
        toys.circle(d_hidden=0)
