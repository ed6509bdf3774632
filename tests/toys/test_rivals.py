"""Rivals of a fit: readings against the fit's own activations and against autograd, and how the directions are made."""

import dataclasses

import pytest
import torch

from param_features.problem import read_inputs
from param_features.toys.rival_directions import read_all, rivals
from tests.benchmarks.toys.test_labels import Averager

N_FEATURES = 5


@pytest.fixture(scope="module")
def fit():
    import param_features as pf

    inputs = torch.randint(12, (40, 6), generator=torch.Generator().manual_seed(1))
    call = {"divergence": "kl", "reference": "uniform", "steps": 20, "progress": False}
    return pf.decompose(Averager().double().eval(), "mix.weight", inputs=inputs, n_features=N_FEATURES, l0=2, **call)


@pytest.fixture(scope="module")
def inputs(fit):
    tokens = torch.randint(12, (7, 6), generator=torch.Generator().manual_seed(2))
    return read_inputs(fit.bound_engine("score").adapter, None, tokens)


@pytest.fixture(scope="module")
def readings(fit, inputs):
    return rivals(fit, inputs, n_slots=6, seed=0)


def test_the_fits_reading_is_its_activations(fit, inputs, readings):
    found = read_all(fit, inputs, {"fit": readings["fit"]})["fit"]
    torch.testing.assert_close(found, fit.activations(inputs=inputs.tokens).to(found))


def test_the_norm_is_that_of_the_gradient(fit, inputs, readings):
    found, model = read_all(fit, inputs, {"norm": readings["norm"]})["norm"], fit.bound_engine("score").adapter.module
    for row, pos in ((0, 0), (3, 2), (6, 5)):
        log_p = model(inputs.tokens)[row, pos].log_softmax(0)
        divergence = torch.full((12,), 1 / 12, dtype=torch.float64) @ -log_p
        gradient = torch.autograd.grad(divergence, model.mix.weight)[0]
        torch.testing.assert_close(found[row, pos, 0].double(), gradient.norm(), rtol=1e-4, atol=1e-6)


def test_there_are_as_many_rivals_as_features_and_none_reads_more_than_the_norm(fit, inputs, readings):
    found = read_all(fit, inputs, readings)
    for name in ("random", "sampled", "principal"):
        assert found[name].shape == (7, 6, N_FEATURES)
        assert (found[name].abs() <= found["norm"] * (1 + 1e-4) + 1e-7).all()
        assert found[name].abs().max() > 0


def test_draws_follow_the_seed_and_principal_directions_do_not(fit, inputs, readings):
    same, other = (read_all(fit, inputs, rivals(fit, inputs, n_slots=6, seed=seed)) for seed in (0, 1))
    first = read_all(fit, inputs, readings)
    for name in ("random", "sampled", "principal"):
        assert torch.equal(first[name], same[name])
    assert not torch.allclose(first["random"], other["random"])
    torch.testing.assert_close(first["principal"].abs()[..., 0], other["principal"].abs()[..., 0], rtol=1e-2, atol=1e-4)


def test_readings_do_not_depend_on_the_batch(fit, inputs, readings, monkeypatch):
    whole = read_all(fit, inputs, readings)
    monkeypatch.setattr("param_features.fit.reading._POSITIONS_PER_BATCH", 13)
    for name, parts in read_all(fit, inputs, readings).items():
        torch.testing.assert_close(parts, whole[name])


def test_features_without_a_model_are_refused(fit, inputs, readings):
    from param_features.errors import NotBoundError

    with pytest.raises(NotBoundError):
        read_all(dataclasses.replace(fit, engine=None), inputs, readings)
