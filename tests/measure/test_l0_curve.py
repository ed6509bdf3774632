import dataclasses

import pytest
import torch

import param_features as pf
from param_features.errors import FeatureCountError, NotBoundError, SampleCountError, SettingError
from param_features.measure import L0Curve


@pytest.fixture(scope="module")
def linear():
    """A linear layer, whose gradient for `sum` is the input beside each output: known without running anything."""
    inputs = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)) * torch.linspace(3, 0.1, 6)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 1, bias=False)
    fit = pf.FitSettings(steps=60, selection="top_k")
    call = {"inputs": inputs, "n_features": 4, "l0": 1, "divergence": "sum", "fit": fit, "progress": False}
    return pf.decompose(model, "weight", **call)


def test_the_fit_at_each_l0_equals_the_sum_over_samples(linear):
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    curve = linear.errors_by_l0(inputs=inputs, l0s=[2, 1])
    assert curve.l0s == (1.0, 2.0)
    assert (curve.n_samples, curve.n_principal) == (25, 25)
    inputs = inputs[25:]
    v_in, v_out = (rows.materialize()["weight"].flatten(1) for rows in (linear.v_in, linear.v_out))
    coords = inputs @ v_in.T
    for l0, error in zip((1, 2), curve.errors["reconstruction_error"], strict=True):
        least = coords.abs().flatten().sort(descending=True).values[25 * l0 - 1]
        rebuilt = (coords * (coords.abs() >= least)) @ v_out
        assert error == pytest.approx(float((inputs - rebuilt).square().sum() / inputs.square().sum()), rel=1e-4)


def test_principal_directions_of_the_first_half_are_measured_on_the_second(linear):
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(2))
    curve = linear.errors_by_l0(inputs=inputs, l0s=[4])
    rows = torch.linalg.svd(inputs[:25], full_matrices=False).Vh[:4]
    left = inputs[25:] - inputs[25:] @ rows.T @ rows
    assert curve.errors["control_pca"][0] == pytest.approx(float(left.square().sum() / inputs[25:].square().sum()), rel=1e-3)


def test_errors_fall_with_l0_and_the_stored_l0_is_among_them(tiny_features):
    curve = tiny_features.errors_by_l0()
    assert curve.l0s == (0.5, 1.0, 2.0, 4.0)
    assert set(curve.errors) == {"reconstruction_error", "control_pca", "control_random", "control_svd_w"}
    for name in curve.errors:
        assert list(curve.errors[name]) == sorted(curve.errors[name], reverse=True), name
    at_own = curve.errors["reconstruction_error"][2]
    assert at_own == pytest.approx(tiny_features.metrics["reconstruction_error"], rel=0.2)


def test_a_pursued_fit_may_keep_more_features_than_at_its_own_l0():
    """With every feature kept the reconstruction is the least-squares one, though the fit's own pursuit takes fewer."""
    inputs = torch.randn(300, 9, generator=torch.Generator().manual_seed(0))
    call = {"inputs": inputs, "n_features": 8, "l0": 1, "divergence": "sum", "steps": 20, "progress": False}
    found = pf.decompose(torch.nn.Linear(9, 1, bias=False), "weight", **call)
    assert found.dictionary.encoder.n_rounds == 5
    rows, held_out = found.v_out.materialize()["weight"].flatten(1), inputs[20:40]
    left = held_out - torch.linalg.lstsq(rows.T, held_out.T).solution.T @ rows
    expected = float(left.square().sum() / held_out.square().sum())
    assert found.errors_by_l0(inputs=inputs[:40], l0s=[8]).errors["reconstruction_error"][0] == pytest.approx(expected, 1e-3)


def test_same_seed_same_curve_and_the_global_state_is_left_alone(tiny_features, tiny_tokens):
    state = torch.get_rng_state()
    curves = [tiny_features.errors_by_l0(tiny_tokens[:6], n_samples=30, seed=seed) for seed in (0, 0, 1)]
    assert curves[0] == curves[1] != curves[2]
    assert (curves[0].n_samples, curves[0].n_principal) == (30, 30)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_table_is_printed():
    text = repr(L0Curve((1.0, 2.5), {"reconstruction_error": (0.5, 0.25)}, 3, 3))
    assert text.splitlines() == [
        "l0                          1     2.5",
        "reconstruction_error    0.500   0.250",
    ]


def test_refusals(tiny_features):
    with pytest.raises(FeatureCountError, match=r"l0=7 lies outside \(0, 6\]"):
        tiny_features.errors_by_l0(l0s=[1, 7])
    with pytest.raises(SettingError, match=r"l0s is empty. Give numbers"):
        tiny_features.errors_by_l0(l0s=[])
    with pytest.raises(SampleCountError, match="Got 3 sequences .*give at least four"):
        tiny_features.errors_by_l0([[1, 2, 3]] * 3)
    with pytest.raises(SettingError, match="n_samples=0 must be at least 1"):
        tiny_features.errors_by_l0(n_samples=0)
    with pytest.raises(NotBoundError, match=r"errors_by_l0\(\) needs the model"):
        dataclasses.replace(tiny_features, engine=None).errors_by_l0()
