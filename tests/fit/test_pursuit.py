"""Pursuit against a plain loop of least squares on dense vectors, and against what a linear encoder cannot do."""

import pytest
import torch

from param_features.errors import FeatureCountError
from param_features.fit import LINEAR, Encoder, pursuit
from param_features.fit.pursuit import pursue, pursued_threshold, rounds_for

N_FEATURES, D = 12, 9


def dictionary(seed: int = 0) -> torch.Tensor:
    rows = torch.randn(N_FEATURES, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(rows, dim=1)


def samples(n: int = 20) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def by_hand(sample: torch.Tensor, rows: torch.Tensor, n_rounds: int) -> tuple[list[int], list[torch.Tensor]]:
    """Orthogonal matching pursuit of one vector as the textbook has it."""
    taken, solutions, left = [], [], sample
    for _ in range(n_rounds):
        overlap = (rows @ left).abs()
        overlap[taken] = -1
        taken.append(int(overlap.argmax()))
        solutions.append(torch.linalg.lstsq(rows[taken].T, sample[:, None]).solution[:, 0])
        left = sample - solutions[-1] @ rows[taken]
    return taken, solutions


def test_features_and_coordinates_are_those_of_the_textbook():
    rows, data = dictionary(), samples()
    path = pursue(data @ rows.T, rows @ rows.T, 4)
    for n, sample in enumerate(data):
        taken, solutions = by_hand(sample, rows, 4)
        assert path.features[n].tolist() == taken
        for n_taken, solution in enumerate(solutions, 1):
            coords = path.coords(float(path.reach[n, n_taken - 1]))[n]
            assert int((coords != 0).sum()) >= n_taken
            if int((coords != 0).sum()) == n_taken:  # equal reach takes both features at once
                torch.testing.assert_close(coords[taken[:n_taken]], solution)


def test_the_threshold_keeps_l0_features_per_sample_each_samples_first_ones():
    rows, data = dictionary(), samples(200)
    path = pursue(data @ rows.T, rows @ rows.T, 6)
    for l0 in (0.5, 2.0, 3.7):
        coords = path.coords(path.threshold(l0))
        assert int((coords != 0).sum()) == round(l0 * 200)
        for n in range(200):
            n_kept = int((coords[n] != 0).sum())
            assert set(coords[n].nonzero().flatten().tolist()) == set(path.features[n, :n_kept].tolist())
    assert not path.coords(1e9).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_left_out_below_the_threshold_change_not_a_bit(dtype):
    generator = torch.Generator().manual_seed(7)
    rows = torch.nn.functional.normalize(torch.randn(30, 20, generator=generator, dtype=dtype), dim=1)
    sizes = torch.rand(300, 1, generator=generator, dtype=dtype) ** 3
    overlaps, gram = sizes * torch.randn(300, 20, generator=generator, dtype=dtype) @ rows.T, rows @ rows.T
    whole = pursue(overlaps, gram, 12)
    for l0 in (0.5, 2.0, 3.7):
        short, threshold = pursue(overlaps, gram, 12, l0=l0), whole.threshold(l0)
        assert short.threshold(l0) == threshold
        assert torch.equal(short.coords(threshold), whole.coords(threshold))
        known = pursue(overlaps, gram, 12, least=threshold)
        assert torch.equal(known.coords(threshold), whole.coords(threshold))
        assert int((known.reach > 0).sum()) <= int((short.reach > 0).sum()) < 0.9 * int((whole.reach > 0).sum())
        some = pursue(overlaps[40:47], gram, 12, least=threshold)
        assert torch.equal(some.coords(threshold), whole.coords(threshold)[40:47])


@pytest.mark.parametrize("n_some", [3, 50])
def test_a_threshold_guessed_from_some_samples_is_that_of_all(monkeypatch, n_some):
    """Also where the guess from the first and the last sample, which are by far the largest, is too high."""
    rows, data = dictionary(), samples(200)
    data[[0, 100, 199]] *= 1000
    overlaps, gram = data @ rows.T, rows @ rows.T
    monkeypatch.setattr(pursuit, "_SOME", n_some)
    assert pursued_threshold(overlaps, gram, 5, 2.0) == pursue(overlaps, gram, 5).threshold(2.0)


def test_the_error_falls_with_every_feature_and_at_full_rank_nothing_is_left():
    rows, data = dictionary(), samples()
    path = pursue(data @ rows.T, rows @ rows.T, D)
    thresholds = [1e9, *path.reach.flatten().sort(descending=True).values.tolist()]
    errors = torch.stack([(data - path.coords(at) @ rows).square().sum(1) for at in thresholds])
    assert (errors.diff(dim=0) < 1e-9).all()
    assert errors[-1].max() < 1e-9 < 0.05 < errors[0].min()


def test_a_feature_whose_neighbour_explains_the_sample_stays_silent():
    """Both overlap with a sample that is the first one alone: a linear encoder keeps both, pursuit one."""
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    overlaps, gram = torch.tensor([[2.0, 0.0, 0.0]]) @ rows.T, rows @ rows.T
    coords, _ = Encoder(2).kept(overlaps, gram, 1)
    torch.testing.assert_close(coords, torch.tensor([[2.0, 0.0, 0.0]]), rtol=1e-3, atol=1e-3)
    assert (Encoder(2).codes(overlaps, gram, threshold=0.5) != 0).tolist() == [[True, False, False]]
    assert LINEAR.codes(overlaps, gram, threshold=0.5).tolist() == [[2.0, pytest.approx(1.6), 0.0]]


def test_codes_keep_the_shape_of_activations():
    rows = dictionary()
    overlaps = samples(6).reshape(2, 3, D) @ rows.T
    linear, found = (encoder.codes(overlaps, rows @ rows.T, 0.3) for encoder in (LINEAR, Encoder(3)))
    torch.testing.assert_close(linear, torch.where(overlaps.abs() >= 0.3, overlaps, 0.0))
    assert found.shape == (2, 3, N_FEATURES)
    torch.testing.assert_close(found[1, 2], Encoder(3).codes(overlaps[1, 2:], rows @ rows.T, 0.3)[0])


def test_equal_features_and_silent_samples_do_no_harm():
    rows = dictionary()
    rows[1] = rows[0]
    data = samples()
    data[0] = 0
    coords, _ = Encoder(5).kept(data @ rows.T, rows @ rows.T, 2)
    assert torch.isfinite(coords).all()
    assert not coords[0].any()


def test_rounds_leave_room_above_the_mean_and_never_exceed_the_features():
    assert rounds_for(5, 100) == 17
    assert rounds_for(0.5, 5) == 4
    assert rounds_for(3, 4) == 4


def test_a_budget_out_of_range_is_refused():
    rows = dictionary()
    path = pursue(samples() @ rows.T, rows @ rows.T, 3)
    with pytest.raises(FeatureCountError, match=r"l0=13 lies outside \(0, 12\]"):
        path.threshold(13)
