"""Restarts: what a feature is worth against really removing it, and fits that start in a state no small step leaves."""

import pytest
import torch

from benchmarks import toys
from param_features.fit.restarts import replacements, usefulness


def test_usefulness_is_what_removal_costs_when_the_best_other_feature_steps_in():
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator, dtype=torch.float64), dim=1)
    coords = torch.randn(30, 5, generator=generator, dtype=torch.float64)
    coords[torch.rand(30, 5, generator=generator) < 0.6] = 0
    coords[:, 4] = 0
    data = coords @ rows + 0.1 * torch.randn(30, 8, generator=generator, dtype=torch.float64)
    left = (data - coords @ rows) @ rows.T
    found = usefulness(coords, left, rows @ rows.T, threshold=0.05)
    for k in range(5):
        cost = torch.tensor(0.0, dtype=torch.float64)
        for sample, own in zip(data, coords, strict=True):
            if not own[k]:
                continue
            rest = sample - own @ rows
            without = rest + own[k] * rows[k]
            others = torch.cat([rows[:k], rows[k + 1 :]])
            won_back = max(float((others @ without).square().max()), 0.05**2)
            cost += max(0.0, float(without.square().sum() - rest.square().sum()) - won_back)
        torch.testing.assert_close(found[k], cost)
    assert found[4] == 0
    assert found[:4].min() > 0


def test_one_of_two_equal_features_is_of_no_use_and_their_rival_is():
    rows = torch.eye(3)[[0, 0, 1]]
    coords = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    useful = usefulness(coords, torch.zeros(2, 3), rows @ rows.T, threshold=0.1)
    torch.testing.assert_close(useful, torch.tensor([0.0, 0.0, 4.0 - 0.01]))


def test_the_weakest_give_way_to_the_best_while_twice_the_use_is_gained():
    useful, gains = torch.tensor([5.0, 0.0, 1.0, 3.0]), torch.tensor([4.0, 9.0, 2.5, 8.0])
    apart, near = torch.eye(4), torch.eye(4)
    near[1, 3] = near[3, 1] = 0.9
    assert [found.tolist() for found in replacements(useful, gains, apart)] == [[1, 2], [1, 3]]
    assert [found.tolist() for found in replacements(useful, gains, near)] == [[1, 2], [1, 0]]
    assert [len(found) for found in replacements(useful, torch.zeros(4), apart)] == [0, 0]


@pytest.mark.release
def test_as_many_features_as_circuits_find_every_circuit_by_restarts_alone():
    """Some start on mixtures of two circuits: they are the strongest samples, and rare."""
    toy = toys.planted_circuits(seed=1)
    covered = {n: toy.score(toy.decompose(n_features=10, fit=settings(n), steps=None)).n_covered for n in (0, 10)}
    assert covered[10] == 10 > covered[0]


def settings(n_restarts: int):
    from param_features.fit import FitSettings

    return FitSettings(steps=600, resample=n_restarts)
