"""Groups of inputs that share a circuit: found whole, and not by directions that mean nothing."""

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError

pytestmark = pytest.mark.release


@pytest.fixture(scope="module")
def toy():
    return toys.groups(n_steps=1500, n_inputs=4000)


def test_groups_are_active_together(toy):
    active = (toy.inputs != 0).unflatten(1, (5, 5))
    assert (active.all(2) | ~active.any(2)).all()
    assert 0.03 < active.all(2).float().mean() < 0.07


def test_a_planted_direction_lies_in_its_groups_weights(toy):
    torch.testing.assert_close(toy.truth.norm(), torch.ones(5))
    shares = toy.shares(toy.truth)
    torch.testing.assert_close(shares.sum(1), torch.ones(5))
    assert (shares.diagonal() > 0.999).all()


def test_every_group_is_found_and_the_controls_find_none(toy):
    scores = toy.score(toy.decompose())
    assert scores.n_covered == 5
    assert scores.mmcs > 0.95
    assert scores.shuffled < 0.3 and scores.random < 0.3
    assert scores.extras["inside"] == 5
    assert scores.extras["inside_random"] == 0


def test_a_fit_with_fewer_features_misses_groups(toy):
    assert toy.score(toy.decompose(n_features=3)).n_covered <= 3


def test_a_rank_beyond_the_group_is_refused():
    with pytest.raises(SettingError, match="rank=6 between 1 and group_size"):
        toys.groups(rank=6)
