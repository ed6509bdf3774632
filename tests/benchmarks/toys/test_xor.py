"""XOR: outputs, truth by hand, recovery and what must fail."""

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.xor import CORNERS
from param_features.errors import SettingError, ToyError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def toy():
    return toys.xor(seed=2)


def test_the_model_computes_xor(toy):
    with torch.no_grad():
        outputs = toy.model(torch.tensor([(0.0, 0.0), *CORNERS]))[:, 0]
    torch.testing.assert_close(outputs, torch.tensor([0.0, 1.0, 1.0, 0.0]), atol=0.05, rtol=0)


def test_a_corners_direction_is_the_units_slopes_times_the_corner(toy):
    weight = toy.model.hidden.weight.detach()
    for corner, found in zip(CORNERS, toy.truth.materialize()["hidden.weight"], strict=True):
        x = torch.tensor(corner, dtype=torch.float32)
        z = weight @ x
        slopes = torch.distributions.Normal(0, 1).cdf(z) + z * torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5
        expected = torch.outer(slopes, x)
        torch.testing.assert_close(found, expected / expected.norm())


def test_the_true_directions_fire_highest_on_their_own_corners(toy):
    fit = toy.decompose(steps=1)
    features = fit.with_directions(toy.truth, fit.v_in)
    assert toy.fires_highest(features) == list(CORNERS)
    scores = toy.score(features)
    assert scores.mmcs == pytest.approx(1)
    assert scores.extras["corners"] == 3


def test_a_fit_finds_them_and_the_controls_do_not(toy):
    scores = toy.score(toy.decompose())
    assert scores.n_covered == 3
    assert scores.mmcs > 0.95
    assert max(scores.shuffled, scores.random) < 0.85
    assert max(scores.n_covered_shuffled, scores.n_covered_random) < 2
    assert scores.numbers["corners"] == 3 > scores.numbers["corners_random"]


def test_two_features_cannot_cover_three_corners(toy):
    scores = toy.score(toy.decompose(n_features=2))
    assert scores.n_covered <= 2
    assert scores.mmcs < 0.7


def test_a_model_that_has_not_learned_xor_is_refused(monkeypatch):
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    with pytest.raises(ToyError, match="After 2 starts.*more n_steps"):
        toys.xor(n_steps=1)
    with pytest.raises(SettingError, match="n_steps=0"):
        toys.xor(n_steps=0)
