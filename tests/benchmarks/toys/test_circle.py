"""The circle: features are local along it, random directions are not."""

import math

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.circle import concentration
from param_features.errors import SettingError

pytestmark = pytest.mark.release


def test_concentration_by_hand():
    angles = torch.arange(180) * (2 * math.pi / 180)
    one, two = torch.zeros(180), torch.zeros(180)
    one[7], two[20], two[110] = 3.0, 1.0, 1.0
    weights = torch.stack([torch.ones(180), one, two, 1 + angles.cos()], 1)
    torch.testing.assert_close(concentration(weights), torch.tensor([0.0, 1.0, 1.0, 0.5]), rtol=1e-4, atol=1e-4)


def test_features_are_local_and_random_directions_are_not():
    toy = toys.circle(n_steps=1500, n_inputs=2000)
    with torch.no_grad():
        assert ((toy.model(toy.by_angle) - toy.by_angle).square().mean(0) < 0.1).all()
    scores = toy.score(toy.decompose())
    assert scores.locality > scores.random + 0.2
    assert scores.coverage >= 0.6
    assert scores.error < 0.1 < scores.error_random
    assert toy.score(toy.decompose(steps=1)).locality < scores.locality
    assert "locality" in repr(scores)
    assert scores.numbers["random"] == scores.random


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match="d_hidden=0"):
        toys.circle(d_hidden=0)
