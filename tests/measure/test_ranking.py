"""Areas under ROC against the definition, pair by pair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from param_features.measure.ranking import auroc


def by_pairs(numbers, is_positive):
    """Share of pairs (positive, negative) in which the positive one's number is higher, ties as half."""
    above, below = numbers[is_positive][:, None], numbers[~is_positive][None]
    return ((above > below).double() + 0.5 * (above == below).double()).mean((0, 1))


@pytest.fixture
def numbers():
    return torch.randint(4, (30, 3), generator=torch.Generator().manual_seed(0)).double()


def test_it_is_the_share_of_pairs_in_order(numbers):
    is_positive = torch.arange(30) % 3 == 0
    torch.testing.assert_close(auroc(numbers, is_positive), by_pairs(numbers, is_positive))
    assert auroc(numbers.float(), is_positive).dtype == torch.float32


def test_several_labels_are_each_scored_as_alone(numbers):
    labels = torch.rand(30, 2, 2, generator=torch.Generator().manual_seed(1)) < 0.4
    found = auroc(numbers, labels)
    assert found.shape == (2, 2, 3)
    for first in range(2):
        for second in range(2):
            torch.testing.assert_close(found[first, second], by_pairs(numbers, labels[:, first, second]))


@given(st.integers(0, 2**16))
def test_only_the_order_counts_and_its_reverse_is_the_complement(seed):
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(20, 2, generator=generator, dtype=torch.float64)
    is_positive = torch.arange(20) < int(torch.randint(1, 20, (), generator=generator))
    found = auroc(numbers, is_positive)
    torch.testing.assert_close(auroc(numbers.exp(), is_positive), found)
    torch.testing.assert_close(auroc(-numbers, is_positive), 1 - found)
    torch.testing.assert_close(auroc(numbers, ~is_positive), 1 - found)


def test_what_always_or_never_happens_has_no_area(numbers):
    assert auroc(numbers, torch.stack([torch.ones(30).bool(), torch.zeros(30).bool()], 1)).isnan().all()
