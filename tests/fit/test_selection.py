import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.errors import FeatureCountError
from param_features.fit import batch_top_k, reconstruction_error, square_errors, threshold_for


@given(st.integers(1, 9), st.integers(1, 7), st.floats(0.1, 1.0), st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_keeps_exactly_the_budget_and_the_largest(n, n_features, share, seed):
    coords = torch.randn(n, n_features, generator=torch.Generator().manual_seed(seed))
    l0 = share * n_features
    kept = batch_top_k(coords, l0)
    assert int(kept.sum()) == round(l0 * n)
    if kept.any() and not kept.all():
        assert coords[kept].abs().min() >= coords[~kept].abs().max()


def test_a_hard_sample_may_keep_all_and_an_easy_one_none():
    kept = batch_top_k(torch.tensor([[9.0, -8.0], [0.1, 0.2]]), l0=1)
    assert kept.tolist() == [[True, True], [False, False]]


def test_threshold_keeps_what_the_budget_keeps():
    coords = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coords.abs() >= threshold_for(coords, 2), batch_top_k(coords, 2))


def test_of_no_samples_none_are_kept():
    assert batch_top_k(torch.zeros(0, 4), 2).shape == (0, 4)


@pytest.mark.parametrize("l0", [0, -1, 4.5, float("nan")])
def test_budget_out_of_range_is_refused(l0):
    with pytest.raises(FeatureCountError, match=r"outside \(0, 4\].*try l0="):
        batch_top_k(torch.zeros(3, 4), l0)


def test_square_errors_equal_built_reconstructions():
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    rows = torch.randn(4, 10, generator=generator, dtype=torch.float64)
    coords = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    found = square_errors(coords, gradients @ rows.T, rows @ rows.T, gradients.square().sum(1))
    built = (gradients - coords @ rows).square().sum(1)
    torch.testing.assert_close(found, built)
    assert reconstruction_error(found, gradients.square().sum(1)) == pytest.approx(
        float(built.sum() / gradients.square().sum())
    )
