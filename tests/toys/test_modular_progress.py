"""Fourier progress measures against sums of cos and sin written out, and on logits whose parts are known."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import param_features as pf
from benchmarks import toys
from param_features.errors import SettingError
from param_features.toys.modular_model import TRAINED
from param_features.toys.modular_progress import fourier_norms, key_waves
from param_features.toys.modular_toy import all_pairs
from tests.models import hooked_classes

P = 7


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    hooked_classes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARAM_FEATURES_CACHE", str(tmp_path_factory.mktemp("toys")))
        toys.modular_training.cache_clear()
        yield toys.modular_training(P, d_model=16, d_mlp=32, n_steps=40, every=20, train_share=0.6)
        toys.modular_training.cache_clear()


def projected(logits, frequencies):
    """The oracle: inner products with cos and sin of w(a + b), one function of (a, b) after the other."""
    a, b = torch.meshgrid(torch.arange(P), torch.arange(P), indexing="ij")
    kept = torch.zeros_like(logits)
    for w in frequencies:
        for wave in (torch.cos, torch.sin):
            direction = wave(2 * math.pi * w * (a + b).double() / P)
            direction /= direction.norm()
            kept += direction[..., None] * (direction[..., None] * logits).sum((0, 1))
    return kept


def test_measures_are_those_of_direct_projections(training):
    found = toys.fourier_progress(training, frequencies=(1, 3))
    pairs, model = all_pairs(P), training.toy.model
    at = [pairs.tolist().index(row) for row in training.train.tolist()]
    answers = (pairs[:, 0] + pairs[:, 1]) % P
    for index, state in enumerate(training.states):
        model.load_state_dict(state)
        with torch.no_grad():
            logits = model(pairs)[:, -1].double()
        waves = projected(logits.reshape(P, P, P), (1, 3)).reshape(P * P, P)
        restricted = float(cross_entropy(waves + logits.mean(0), answers))
        excluded = float(cross_entropy((logits - waves)[at], answers[at]))
        assert float(found.restricted[index]) == pytest.approx(restricted, abs=1e-5)
        assert float(found.excluded[index]) == pytest.approx(excluded, abs=1e-5)
        norm = sum(float(state[name].double().square().sum()) for name in TRAINED)
        assert float(found.square_norm[index]) == pytest.approx(norm)
        assert float(found.gini_embedding[index]) == pytest.approx(
            float(pf.development.gini(fourier_norms(state["embed.W_E"][:P])))
        )
    assert found.steps == training.steps and "frequencies (1, 3)" in repr(found)


def test_a_model_of_one_frequency_keeps_all_and_loses_all():
    a, b, c = torch.meshgrid(*[torch.arange(P).double()] * 3, indexing="ij")
    logits = 5 * torch.cos(2 * math.pi * 2 * (a + b - c) / P)
    assert torch.allclose(key_waves(logits, [2]), logits, atol=1e-10)
    assert key_waves(logits, [1, 3]).abs().max() < 1e-10
    assert key_waves(torch.cos(2 * math.pi * 2 * (a - b) / P), [2]).abs().max() < 1e-10


def test_norms_are_along_cos_and_sin_of_norm_one():
    matrix = torch.randn(P, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    residues = torch.arange(P).double()
    waves = [torch.ones(P).double()]
    for w in range(1, P // 2 + 1):
        waves += [torch.cos(2 * math.pi * w * residues / P), torch.sin(2 * math.pi * w * residues / P)]
    basis = torch.stack([wave / wave.norm() for wave in waves])
    assert torch.allclose(fourier_norms(matrix), (basis @ matrix).norm(dim=1))


@pytest.mark.parametrize("bad", [(), (0,), (4,)])
def test_frequencies_out_of_range_are_refused(training, bad):
    with pytest.raises(SettingError, match="one or more of 1 to 3"):
        toys.fourier_progress(training, frequencies=bad)


def test_the_weight_norm_tells_the_phases():
    norm = torch.cat([torch.linspace(500, 1200, 4), torch.linspace(1190, 1000, 16), torch.linspace(900, 600, 5)]).double()
    steps, other = tuple(range(0, 250, 10)), torch.ones(25).double()
    found = toys.FourierProgress(steps, (1,), other, other, other, other, norm)
    first, last = found.change_points()
    assert abs(first - 40) <= 10 and abs(last - 200) <= 10
    assert found.change_points("excluded") == ()
    with pytest.raises(SettingError, match="Accepted: 'restricted'"):
        found.change_points("loss")
