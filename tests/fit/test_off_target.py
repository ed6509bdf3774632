"""The penalty on what features do elsewhere, against the slow obvious computation."""

import torch

from param_features.fit import OffTarget
from param_features.fit.formats import LowRank
from param_features.gradients import Dense, GradientStore


def case() -> tuple[GradientStore, LowRank, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(40, 3, 4, generator=generator, dtype=torch.float64)
    store = GradientStore(40, {"w": Dense(matrices[:1])})
    store.add({"w": Dense(matrices)})
    left, right = (torch.randn(5, d, 2, generator=generator, dtype=torch.float64) for d in (3, 4))
    return store, LowRank({"w": (left, right)}), matrices


def by_hand(directions: LowRank, matrices: torch.Tensor) -> torch.Tensor:
    unit = matrices / matrices.square().sum((1, 2)).mean().sqrt()
    rows = directions.materialize()["w"]
    return torch.stack([torch.stack([(row * gradient).sum() ** 2 for gradient in unit]).mean() for row in rows])


def test_costs_are_mean_squares_of_the_first_order_effects():
    store, directions, matrices = case()
    torch.testing.assert_close(OffTarget(store, 3.0).costs(directions), 3 * by_hand(directions, matrices))


def test_the_penalty_s_mean_over_draws_is_the_cost_and_v_in_learns_zeros():
    store, directions, matrices = case()
    off_target, generator = OffTarget(store, 3.0), torch.Generator().manual_seed(0)
    other = directions.map(lambda tensor: tensor * 0.7)
    tied = torch.stack([off_target.penalty(directions, directions, generator) for _ in range(400)]).mean()
    untied = torch.stack([off_target.penalty(other, directions, generator) for _ in range(400)]).mean()
    torch.testing.assert_close(tied, 3 * by_hand(directions, matrices).sum(), rtol=0.05, atol=0)
    expected = 3 * by_hand(directions, matrices).sum() + by_hand(other, matrices).sum()
    torch.testing.assert_close(untied, expected, rtol=0.05, atol=0)


def test_a_weight_of_zero_asks_for_nothing():
    store, directions, _ = case()
    assert OffTarget(store, 0.0).penalty(directions, directions, torch.Generator()) == 0
