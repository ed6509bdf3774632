"""Products of the fit: plain products and autograd are the oracles."""

import pytest
import torch

from param_features.fit.formats import LowRank
from param_features.gradients import Factored, Gradients, types
from param_features.gradients.products import matmul, product


def normal(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [(), (0, 3), (0, 1, 2, 3, 4)], ids=["none", "some", "all"])
def test_the_gradient_is_the_dense_one_however_many_directions_get_mostly_zeros(columns, dtype):
    rows, directions, back = (
        normal(40, 11, dtype=dtype),
        normal(5, 11, dtype=dtype).requires_grad_(),
        normal(40, 5, dtype=dtype),
    )
    back[3:, list(columns)] = 0
    found, oracle = product(rows, directions), rows @ directions.T
    torch.testing.assert_close(found, oracle)
    torch.testing.assert_close(torch.autograd.grad(found, directions, back), torch.autograd.grad(oracle, directions, back))


def test_nothing_comes_back_to_the_rows():
    rows, directions = normal(4, 3).requires_grad_(), normal(2, 3).requires_grad_()
    found = product(rows, directions).sum()
    assert torch.autograd.grad(found, [rows, directions], allow_unused=True)[0] is None


@pytest.mark.parametrize("shape", [(7, 5, 3), (1, 1, 1), (0, 4, 2), (3, 4, 0)], ids=str)
def test_onednn_gives_what_the_plain_product_gives(shape):
    n, d, k = shape
    for rows, directions in [(normal(n, d), normal(k, d)), (normal(d, n).T, normal(d, k).T)]:
        torch.testing.assert_close(matmul(rows.float(), directions.float()), rows.float() @ directions.float().T)


def factored(n_heard: int) -> Factored:
    """Twelve samples of six positions, the last of which have no output gradient."""
    delta, inputs = normal(12, 6, 5), normal(12, 6, 4)
    delta[:, n_heard:] = 0
    return Factored(delta, inputs)


@pytest.mark.parametrize("as_matrices", [False, True])
@pytest.mark.parametrize("n_heard", [0, 2, 6])
@pytest.mark.parametrize("rank", [1, 3])
def test_overlaps_and_their_gradients_are_those_of_inner(monkeypatch, rank, n_heard, as_matrices):
    monkeypatch.setattr(types, "costs_less_as_matrices", lambda *_: as_matrices)
    directions = LowRank({"w": (normal(7, 5, rank), normal(7, 4, rank))}).map(lambda tensor: tensor.requires_grad_())
    gradients: Gradients = {"w": factored(n_heard)}
    back = normal(12, 7)
    found, oracle = directions.overlaps(gradients), directions.inner(gradients)
    torch.testing.assert_close(found, oracle)
    for one, other in zip(*(torch.autograd.grad(each, directions.tensors, back) for each in (found, oracle)), strict=True):
        torch.testing.assert_close(one, other)
        assert bool(other.any()) == (n_heard > 0)


def test_matrices_are_built_where_they_cost_less_and_fit(monkeypatch):
    """Rank 1 of a large matrix goes through factors, many factors through matrices, unless those would be too large."""
    large = (200, 300), 400, 2400, 50
    assert not types.costs_less_as_matrices(*large, 1)
    assert types.costs_less_as_matrices(*large, 80)
    monkeypatch.setattr(types, "_MOST_NUMBERS", 400 * 200 * 300 - 1)
    assert not types.costs_less_as_matrices(*large, 80)
