"""Sparse products: the dense ones and autograd are the oracles."""

import pytest
import torch

from param_features.fit.formats import LowRank
from param_features.gradients import Dense, Factored, Indexed, sparse_product
from param_features.gradients.sparse import sampled_product


def mask(n: int, m: int, share: float = 0.2) -> torch.Tensor:
    return torch.rand(n, m, generator=torch.Generator().manual_seed(3)) < share


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_a_sampled_product_is_the_product_where_kept_and_zero_elsewhere():
    rows, directions, kept = normal(7, 11), normal(5, 11).requires_grad_(), mask(7, 5)
    found, oracle = sampled_product(rows, directions, kept), (rows @ directions.T) * kept
    torch.testing.assert_close(found, oracle)
    back = normal(7, 5)
    torch.testing.assert_close(torch.autograd.grad(found, directions, back), torch.autograd.grad(oracle, directions, back))
    assert 0 < int(kept.sum()) < kept.numel()


def test_a_sparse_product_and_its_gradient_are_those_of_the_dense_one():
    coords, matrix = normal(7, 5) * mask(7, 5), normal(5, 4).requires_grad_()
    found, oracle = sparse_product(coords, matrix), coords @ matrix
    torch.testing.assert_close(found, oracle)
    back = normal(7, 4)
    torch.testing.assert_close(torch.autograd.grad(found, matrix, back), torch.autograd.grad(oracle, matrix, back))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_and_everything_can_be_kept(share):
    rows, directions, kept = normal(4, 6), normal(3, 6), mask(4, 3, share + 1e-9)
    torch.testing.assert_close(sampled_product(rows, directions, kept), (rows @ directions.T) * kept)
    torch.testing.assert_close(sparse_product(rows[:, :3] * kept, directions), (rows[:, :3] * kept) @ directions)


@pytest.mark.parametrize("form", ["dense", "factored", "indexed"])
def test_every_gradient_format_gives_the_kept_entries_alone(form):
    delta, inputs = normal(6, 3, 4), normal(6, 3, 5)
    gradient = {
        "dense": Dense(torch.einsum("npo,npi->noi", delta, inputs)),
        "factored": Factored(delta, inputs),
        "indexed": Indexed(delta, torch.arange(18).reshape(6, 3) % 5, 5),
    }[form]
    directions, kept = LowRank({"w": (normal(8, 4, 2), normal(8, 5, 2))}), mask(6, 8)
    every = directions.inner({"w": gradient})
    torch.testing.assert_close(directions.overlaps({"w": gradient}, kept), every * kept)
    assert every[~kept].abs().min() > 0
