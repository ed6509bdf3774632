"""Tables over pairs of features, against loops over pairs and samples."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.measure import counterpart_pairs as module
from param_features.measure.counterpart_pairs import correlation_table, counterparts, overlaps, top_samples


def strengths(n_samples: int, n_features: int, seed: int = 0, share: float = 0.4) -> torch.Tensor:
    """Mostly zeros, and a few values so that ties occur."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(1, 9, (n_samples, n_features), generator=generator).double()
    return values * (torch.rand(n_samples, n_features, generator=generator) < share)


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    size = (a.square().sum() * b.square().sum()).sqrt()
    return float((a * b).sum() / size) if size > 1e-9 else 0.0


def area(numbers, is_positive):
    """Share of pairs (positive, negative) in order, ties as half; NaN without pairs."""
    above, below = numbers[is_positive][:, None], numbers[~is_positive][None]
    return float(((above > below).double() + 0.5 * (above == below).double()).mean())


def top(values, n):
    """The set of samples at least as strong as the n-th strongest, zeros never."""
    least = sorted(values.tolist(), reverse=True)[min(n, len(values)) - 1]
    return {index for index, value in enumerate(values.tolist()) if value >= least and value > 0}


def is_in(chosen, n_samples):
    return torch.tensor([index in chosen for index in range(n_samples)])


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 25), st.integers(1, 4), st.integers(1, 5), st.integers(1, 8), st.integers(0, 999))
def test_every_pair_is_what_loops_give(n_samples, n_ours, n_theirs, n_top, seed):
    ours, theirs = strengths(n_samples, n_ours, seed), strengths(n_samples, n_theirs, seed + 1)
    found = counterparts(ours, theirs, n_top=n_top)
    for i in range(n_ours):
        for j in range(n_theirs):
            a, b = ours[:, i], theirs[:, j]
            one, two = top(a, n_top), top(b, n_top)
            assert float(found.correlation[i, j]) == pytest.approx(pearson(a, b), abs=1e-9)
            assert float(found.auroc[i, j]) == pytest.approx(area(b, is_in(one, n_samples)), nan_ok=True)
            assert float(found.reverse_auroc[i, j]) == pytest.approx(area(a, is_in(two, n_samples)), nan_ok=True)
            assert float(found.overlap[i, j]) == pytest.approx(len(one & two) / max(1, len(one | two)))


def test_sparse_is_dense_and_chunks_change_nothing(monkeypatch):
    ours, theirs = strengths(50, 4), strengths(50, 11, seed=1, share=0.1)
    whole = counterparts(ours, theirs, n_top=5)
    sparse = theirs.to_sparse().coalesce()
    monkeypatch.setattr(module, "_CHUNK_NUMBERS", 150)  # three features at a time
    for other in (theirs, sparse):
        found = counterparts(ours, other, n_top=5)
        for name in ("correlation", "auroc", "reverse_auroc", "overlap"):
            torch.testing.assert_close(getattr(found, name), getattr(whole, name), equal_nan=True)
        torch.testing.assert_close(correlation_table(ours, other), whole.correlation)


def test_turning_it_round_transposes_it():
    ours, theirs = strengths(40, 3), strengths(40, 5, seed=1)
    there, back = counterparts(ours, theirs, n_top=6), counterparts(theirs, ours, n_top=6)
    torch.testing.assert_close(there.correlation, back.correlation.T)
    torch.testing.assert_close(there.auroc, back.reverse_auroc.T)
    torch.testing.assert_close(there.overlap, back.overlap.T)


def test_a_copy_is_perfect_and_a_shuffled_copy_is_not():
    ours = torch.rand(500, 3, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(500, generator=torch.Generator().manual_seed(1))
    copy, moved = counterparts(ours, 3 * ours, n_top=20), counterparts(ours, ours[order], n_top=20)
    torch.testing.assert_close(copy.correlation.diagonal(), torch.ones(3))
    assert copy.auroc.diagonal().tolist() == copy.overlap.diagonal().tolist() == [1, 1, 1]
    assert moved.correlation.abs().max() < 0.2
    assert moved.overlap.max() < 0.2


def test_what_is_never_active_goes_with_nothing():
    ours = torch.cat([strengths(30, 1), torch.zeros(30, 1), torch.full((30, 1), 7.0)], 1)
    found = counterparts(ours, strengths(30, 4, seed=2), n_top=5)
    assert found.correlation[1:].abs().max() == 0
    assert found.auroc[1].isnan().all()
    assert found.overlap[1].max() == 0


def test_top_samples_keep_ties_and_never_zeros():
    values = torch.tensor([[3.0, 0.0], [2.0, 0.0], [2.0, 0.1], [1.0, 0.0]])
    assert top_samples(values, 2).T.tolist() == [[True, True, True, False], [False, False, True, False]]
    assert top_samples(values, 9)[:, 0].tolist() == [True] * 4


def test_overlap_of_sets_of_different_sizes():
    one, two = torch.tensor([[True], [True], [True], [False]]), torch.tensor([[True], [False], [False], [True]])
    assert overlaps(one, two).tolist() == [[0.25]]
