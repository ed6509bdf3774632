import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.fit.formats import LowRank, leading_factors
from param_features.gradients import Dense, Factored, Indexed


def random_low_rank(n_features: int, rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return LowRank(
        {
            "a": (draw(n_features, 5, rank), draw(n_features, 4, rank)),
            "b": (draw(n_features, 3, 1), draw(n_features, 1, 1)),
        }
    )


def flat(directions: LowRank) -> torch.Tensor:
    return torch.cat([matrix.flatten(1) for matrix in directions.materialize().values()], 1)


sizes = given(n=st.integers(1, 5), rank=st.integers(1, 3), seed=st.integers(0, 99))


@sizes
@settings(deadline=None, max_examples=25)
def test_five_operations_equal_dense_ones(n, rank, seed):
    ours, theirs = random_low_rank(n, rank, seed), random_low_rank(3, 2, seed + 100)
    torch.testing.assert_close(ours.gram(), flat(ours) @ flat(ours).T)
    torch.testing.assert_close(ours.gram(theirs), flat(ours) @ flat(theirs).T)
    torch.testing.assert_close(ours.norm(), flat(ours).norm(dim=1))
    before, factor = flat(ours), torch.rand(n, dtype=torch.float64) + 0.5
    ours.scale_(factor)
    torch.testing.assert_close(flat(ours), before * factor[:, None])


@pytest.mark.parametrize("kind", ["dense", "factored", "indexed"])
@sizes
@settings(deadline=None, max_examples=15)
def test_inner_equals_dense_product_for_every_gradient_format(kind, n, rank, seed):
    directions = random_low_rank(n, rank, seed)
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(7, 6, 5, generator=generator, dtype=torch.float64)
    first = {
        "dense": Dense(torch.randn(7, 5, 4, generator=generator, dtype=torch.float64)),
        "factored": Factored(delta, torch.randn(7, 6, 4, generator=generator, dtype=torch.float64)),
        "indexed": Indexed(delta, torch.randint(4, (7, 6), generator=generator), 4),
    }[kind]
    bias = Dense(torch.randn(7, 3, 1, generator=generator, dtype=torch.float64))
    rows = torch.cat([first.dense().matrix.flatten(1), bias.matrix.flatten(1)], 1)
    torch.testing.assert_close(directions.inner({"a": first, "b": bias}), rows @ flat(directions).T)


def test_leading_factors_are_the_best_of_their_rank_and_balanced():
    matrix = torch.randn(3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = leading_factors({"a": matrix}, rank=2)
    u, s, vh = torch.linalg.svd(matrix)
    best = u[:, :, :2] * s[:, None, :2] @ vh[:, :2]
    torch.testing.assert_close(found.materialize()["a"], best)
    left, right = found.factors["a"]
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=1))


def test_rank_is_cut_to_each_matrix():
    found = leading_factors({"a": torch.randn(2, 5, 4), "b": torch.randn(2, 3, 1)}, rank=3)
    assert found.factors["a"][0].shape == (2, 5, 3)
    assert found.factors["b"][0].shape == (2, 3, 1)
