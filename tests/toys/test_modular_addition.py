"""Modular addition: Fourier shares of planted waves, what the model has learned, and features beside their controls."""

import math

import pytest
import torch

from benchmarks import toys
from param_features.errors import SettingError, ToyError
from param_features.toys.modular_toy import all_pairs, frequency_shares, key_frequencies
from tests.models import hooked_classes

P = 31


def wave(frequency, phase=0.0):
    return torch.cos(2 * math.pi * frequency * torch.arange(P) / P + phase)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAM_FEATURES_CACHE", str(tmp_path))
    toys.modular_addition.cache_clear()
    yield tmp_path
    toys.modular_addition.cache_clear()


@pytest.mark.parametrize("frequency", [1, 7, 15])
def test_a_circuit_of_one_frequency_has_all_its_power_there(frequency):
    a, b = wave(frequency, 0.3)[:, None], wave(frequency, 1.1)[None]
    bent = (a + b) * (a - 0.5 * b) + a * b + 3.0  # a product of waves reaches twice the frequency; the mean does not count
    share = frequency_shares(bent.unsqueeze(2))[0]
    assert share.shape == (15,)
    assert share.argmax() == frequency - 1
    assert float(share[frequency - 1]) == pytest.approx(1, abs=1e-6)


def test_a_mixture_is_shared_by_power():
    grid = (2 * wave(3)[:, None] + wave(11)[None]).unsqueeze(2)
    share = frequency_shares(grid)[0]
    assert float(share[2]) == pytest.approx(0.8, abs=1e-6)
    assert float(share[10]) == pytest.approx(0.2, abs=1e-6)


def test_noise_and_renamed_residues_have_little_power_anywhere():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(P, P, 4, generator=generator)
    assert frequency_shares(noise).max() < 0.15
    order = torch.randperm(P, generator=generator)
    pure = (wave(4)[:, None] * wave(4)[None])[order][:, order].unsqueeze(2)
    assert frequency_shares(pure).max() < 0.5


def test_key_frequencies_are_those_planted_in_an_embedding():
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(2, 16, generator=generator)
    embedding = wave(5)[:, None] * directions[0] + wave(12, 0.7)[:, None] * directions[1] + 2.0
    assert key_frequencies(embedding + 0.05 * torch.randn(P, 16, generator=generator)) == (5, 12)


def test_inputs_are_all_pairs():
    pairs = all_pairs(7)
    assert pairs.shape == (49, 3)
    assert pairs[10].tolist() == [1, 3, 7]
    assert len({tuple(row) for row in pairs.tolist()}) == 49


def test_a_model_that_has_not_learned_is_refused_and_not_kept(cache):
    hooked_classes()
    with pytest.raises(ToyError, match=r"After 10 starts .* right on \d+\.\d% of the pairs held out"):
        toys.modular_addition(7, d_model=8, d_mlp=8, n_steps=1)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("bad", [{"p": 9}, {"p": 5}, {"d_model": 30}, {"n_steps": 0}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match=next(iter(bad))):
        toys.modular_addition(**bad)


@pytest.mark.release
def test_features_keep_to_key_frequencies_and_controls_do_not(cache):
    hooked_classes()
    toy = toys.modular_addition()
    with torch.no_grad():
        sums = toy.model(toy.inputs)[:, -1].argmax(1)
    assert (sums == toy.inputs[:, :2].sum(1) % P).double().mean() > 0.99
    numbers = toy.score(toy.decompose()).numbers
    assert numbers["keys"] == len(toy.frequencies) > 0
    assert numbers["purity"] > numbers["purity_random"] + 0.1
    assert numbers["purity_shuffled"] < 0.15
    assert numbers["key_share"] > 2 * numbers["key_chance"]
