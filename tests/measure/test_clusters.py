"""Components that are needed together become one; independent ones never do."""

import math

import numpy as np
import pytest
import torch

from param_features.errors import SettingError
from param_features.measure import find_clusters


def entropy(p: float) -> float:
    return 0.0 if p in (0, 1) else -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def described(needed: np.ndarray, groups: list[list[int]], rank_cost: float) -> float:
    """Bits of a partition, written down as the docstring says, sample by sample."""
    n, usual = len(needed), [k for k in range(needed.shape[1]) if 0 < needed[:, k].sum() < len(needed)]
    name, number, bits = math.log2(len(usual)), math.log2(n) / 2, 0.0
    for group in groups:
        on = needed[:, group].any(1)
        bits += n * entropy(on.mean()) + number
        if len(group) > 1:
            bits += len(group) * (name + number)
            bits += sum(on.sum() * entropy(needed[on, k].mean()) + rank_cost * (on & ~needed[:, k]).sum() for k in group)
    return bits


def planted(n: int = 2000, n_alone: int = 12, n_groups: int = 6, size: int = 3, kept: float = 0.95) -> torch.Tensor:
    """Groups of three of which each member is on with its group with probability `kept`, then components alone."""
    generator = torch.Generator().manual_seed(0)
    group = torch.rand(n, n_groups, generator=generator) < 0.02
    members = group.repeat_interleave(size, 1) & (torch.rand(n, n_groups * size, generator=generator) < kept)
    rates = torch.rand(n_alone, generator=generator) * 0.9
    return torch.cat([members, torch.rand(n, n_alone, generator=generator) < rates], 1)


def test_planted_groups_come_out_and_shuffled_samples_give_none() -> None:
    is_needed = planted()
    found = find_clusters(is_needed, ["a", "b", "c"] * 10)
    assert sorted(group.members for group in found.groups) == [(k, k + 1, k + 2) for k in range(0, 18, 3)]
    assert all(group.sites == ("a", "b", "c") for group in found.groups)
    assert found.control_groups == 0 and found.control_saved == 0
    for group in found.groups:
        on = is_needed[:, list(group.members)]
        assert group.rate == pytest.approx(float(on.any(1).float().mean()))
        assert group.together == pytest.approx(float(on.all(1).sum() / on.any(1).sum()))
    assert "6 groups of 18 of 30" in str(found)


@pytest.mark.parametrize("rank_cost", [0.0, 1.0, 3.0])
def test_bits_are_those_of_the_description_written_down_sample_by_sample(rank_cost: float) -> None:
    is_needed = planted(600, 8, 3)
    found = find_clusters(is_needed, ["a"] * 17, rank_cost=rank_cost)
    groups = [list(group.members) for group in found.groups]
    assert groups
    alone = [[k] for k in range(17)]
    rest = [[k] for k in range(17) if not any(k in group for group in groups)]
    needed = is_needed.numpy()
    assert found.bits_alone * 600 == pytest.approx(described(needed, alone, rank_cost))
    assert found.bits * 600 == pytest.approx(described(needed, groups + rest, rank_cost))


def test_independent_components_stay_apart_at_any_rate() -> None:
    rates = torch.linspace(0.001, 0.999, 30)
    is_needed = torch.rand(1000, 30, generator=torch.Generator().manual_seed(1)) < rates
    assert find_clusters(is_needed, ["a"] * 30, rank_cost=0.0).groups == ()


def test_a_larger_rank_cost_parts_what_is_seldom_needed_together() -> None:
    often = torch.rand(4000, generator=torch.Generator().manual_seed(2)) < 0.05
    seldom = often & (torch.rand(4000, generator=torch.Generator().manual_seed(3)) < 0.3)
    both = torch.stack([often, seldom], 1)
    assert len(find_clusters(both, ["a", "b"], rank_cost=0.0).groups) == 1
    assert find_clusters(both, ["a", "b"], rank_cost=10.0).groups == ()


@pytest.mark.parametrize("constant", [False, True])
def test_components_that_never_change_tell_nothing(constant: bool) -> None:
    is_needed = torch.cat([planted(500, 0, 1), torch.full((500, 3), constant)], 1)
    assert [group.members for group in find_clusters(is_needed, ["a"] * 6).groups] == [(0, 1, 2)]


def test_nothing_at_all_is_described_by_no_groups() -> None:
    assert find_clusters(torch.zeros(5, 3, dtype=torch.bool), ["a"] * 3).groups == ()


@pytest.mark.parametrize("rank_cost", [-1.0, math.nan, math.inf])
def test_a_rank_cost_that_is_none_is_refused(rank_cost: float) -> None:
    with pytest.raises(SettingError, match="rank_cost"):
        find_clusters(planted(10, 1, 1), ["a"] * 4, rank_cost=rank_cost)


def test_no_samples_are_refused() -> None:
    with pytest.raises(SettingError, match="no samples"):
        find_clusters(torch.zeros(0, 3, dtype=torch.bool), ["a"] * 3)
