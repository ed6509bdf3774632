"""The rule for phase changes: none in noise or on a slope, the planted one at its place."""

import sys

import pytest
import torch

from param_features.development.phases import change_points, log_curve, noise_of
from param_features.errors import MissingExtraError, SettingError


def noisy(n, seed, sd=0.2):
    return sd * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("n", [8, 20])
def test_noise_alone_hardly_ever_changes(n):
    found = [bool(change_points(noisy(n, seed).exp())) for seed in range(100)]
    assert sum(found) <= 12  # 5 in 100 are expected at 8 values, fewer beyond


def test_noise_changes_often_where_a_change_costs_little():
    found = [bool(change_points(noisy(20, seed).exp(), penalty=1)) for seed in range(30)]
    assert sum(found) > 15


@pytest.mark.parametrize("slope", [0, 0.02])
def test_a_planted_jump_is_found_where_it_is(slope):
    right = 0
    for seed in range(40):
        values, place = noisy(20, seed, 0.05) + slope * torch.arange(20), 6 + seed % 9
        values[place:] += 1
        right += change_points(values.exp()) == [place]
    assert right >= 36


def test_two_jumps_and_a_bend():
    values = noisy(30, 0, 0.01)
    values[10:] += 1
    values[20:] -= 2
    assert change_points(values.exp()) == [10, 20]
    bent = torch.arange(30.0, dtype=torch.float64).clamp(min=15) * 0.1 + noisy(30, 1, 0.01)
    (place,) = change_points(bent.exp())
    assert 14 <= place <= 17


@pytest.mark.parametrize("factor", [1.0, 1.15, 0.85])
def test_a_steady_rise_or_fall_is_one_phase(factor):
    assert change_points(factor ** torch.arange(25.0, dtype=torch.float64)) == []


def test_what_appears_from_nothing_is_found():
    assert change_points(torch.tensor([0.0] * 5 + [0.4] * 6)) == [5]
    assert change_points(torch.zeros(9)) == []


def test_leading_nans_keep_their_places_and_short_curves_do_not_change():
    values = torch.tensor([float("nan")] + [1.0] * 5 + [9.0] * 5)
    assert change_points(values) == [6]
    assert change_points(values[:5]) == []
    assert change_points(torch.full((8,), float("nan"))) == []


def test_scale_does_not_matter():
    values = noisy(20, 3).exp()
    values[8:] *= 20
    assert change_points(values) == change_points(1e-9 * values) == [8]


def test_the_noise_is_that_of_neighbours_and_not_of_jumps():
    values = noisy(2000, 0, 0.3)
    plain = noise_of(values)
    assert plain == pytest.approx(0.3, rel=0.1)
    values[1000:] += 3
    assert noise_of(values) == pytest.approx(plain, rel=0.02)
    assert noise_of(torch.linspace(0, 100, 1000)) == pytest.approx(5)
    assert noise_of(torch.zeros(8)) == 0.02


def test_zeros_have_a_log():
    logs = log_curve(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    assert torch.allclose(logs, torch.tensor([[0.002, 1.0], [2.002, 1.0]], dtype=torch.float64).log())


def test_what_is_refused(monkeypatch):
    with pytest.raises(SettingError, match="penalty=0 must be positive"):
        change_points(torch.ones(8), penalty=0)
    monkeypatch.setitem(sys.modules, "ruptures", None)
    with pytest.raises(MissingExtraError, match=r"pip install .param_features\[devinterp\]"):
        change_points(torch.ones(8))
