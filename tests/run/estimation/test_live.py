"""Bytes of tensors that are alive at once."""

import torch

from param_features.gradients import sparse_product
from param_features.run.estimation.live import LiveBytes

SIZE = 4 * 100 * 100


def test_peak_counts_what_is_alive_together_and_views_once():
    before = torch.ones(100, 100)
    with LiveBytes() as live:
        one = before @ before
        two = one + 1
        assert live.now == 2 * SIZE
        del one
        three = two.T
        del two
        assert (live.now, live.peak) == (SIZE, 2 * SIZE)
        del three
    assert (live.now, live.peak) == (0, 2 * SIZE)


def test_tensors_from_before_and_changes_in_place_are_free():
    before = torch.ones(100, 100)
    with LiveBytes() as live:
        before.add_(1)
        view = before.view(-1)[5:]
    assert live.peak == 0 and len(view) == 9995


def test_what_a_graph_keeps_for_its_backward_pass_is_alive():
    leaf = torch.ones(100, 100, requires_grad=True)
    with LiveBytes() as live:
        total = leaf.sin().exp().sum()
        assert live.now >= 1 * SIZE  # the exponential; the sine is of the leaf
        total.backward()
        del total
    assert live.now == SIZE and leaf.grad is not None  # the gradient
    assert live.peak >= 2 * SIZE


def test_results_are_those_without_the_count_and_sparse_tensors_pass():
    values, other = torch.randn(20, 30) * (torch.rand(20, 30) > 0.5), torch.randn(30, 4)
    expected = sparse_product(values, other)
    with LiveBytes() as live:
        found = sparse_product(values, other)
    assert torch.equal(found, expected) and live.peak > 0
