"""Learning coefficients that are known: d/2 of a quadratic, and that of w₁²w₂² by integration."""

import gc

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ConvergenceError, SettingError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class Outputs(nn.Module):
    """x ↦ x · f(w − 1), at w = 1: the squared error from 0 is the sum of the squares of f's outputs."""

    def __init__(self, n_weights, function):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_weights, 1))
        self.function = function

    def forward(self, x):
        return x * self.function(self.weight[:, 0] - 1)


def at(n_weights, function):
    """Bound features of the toy's only parameter, and its inputs of ones."""
    model = Outputs(n_weights, function)
    fit = {"n_features": 2, "l0": 1, "steps": 2, "divergence": "sum", "progress": False}
    with torch.no_grad():
        model.weight.add_(0.3)  # somewhere with gradients
        features = pf.decompose(model, "weight", inputs=torch.rand(64, 1) + 0.5, reference="mean", **fit)
        model.weight.sub_(0.3)
    return features, torch.ones(8, 1)


def square(output):
    return output.square().sum(1)


CHAINS = {"along": "all", "loss": square, "n_beta": 1000.0, "n_chains": 2, "batch_size": 8}


def test_a_quadratic_has_half_its_dimensions():
    """Many dimensions, so that few steps are enough: the spread of Σ w² over draws falls with their number.

    A step too long for the curvature 2 nβ adds lr nβ / 2, 2.5 %, to the truth.
    """
    features, inputs = at(256, lambda w: w)
    found = pf.development.learning_coefficient(
        features, inputs=inputs, lr=5e-5, localization=1.0, n_steps=400, n_burn_in=100, **CHAINS
    )
    assert found.d == 256
    assert found.mean == pytest.approx(128, rel=0.1)
    assert found.r_hat < 1.1


def coefficient_of_a_pair(n_beta, gamma):
    """E[nβ w₁²w₂²] under exp(−nβ w₁²w₂² − γ/2 (w₁² + w₂²)), by integration over w₁; over w₂ it is a Gaussian's."""
    first = torch.linspace(-6, 6, 200_001, dtype=torch.float64) / gamma**0.5
    precision = gamma + 2 * n_beta * first.square()
    weight = (-gamma / 2 * first.square()).exp() / precision.sqrt()
    return float((n_beta * first.square() / precision * weight).sum() / weight.sum())


def test_a_singular_loss_has_the_value_that_integration_gives():
    """Σ w₁²w₂² over 256 pairs of weights: coefficients of independent losses add up, as do those of w₁² in a quadratic.

    λ of a pair is 1/2, and nears that with log nβ only; at this nβ and γ the integral is the truth.
    """
    by_n_beta = [coefficient_of_a_pair(n_beta, 1.0) for n_beta in (10, 1e2, 1e3, 1e4)]
    assert 0.25 < by_n_beta[0] < by_n_beta[1] < by_n_beta[2] < by_n_beta[3] < 0.5
    slow = CHAINS | {"max_r_hat": 1.3}  # along the arms, where one weight of a pair is 0, chains move by 1 / (lr γ) steps
    features, inputs = at(512, lambda w: w.reshape(-1, 2).prod(1))
    found = pf.development.learning_coefficient(
        features, inputs=inputs, lr=4e-4, localization=10.0, n_steps=1000, n_burn_in=400, **slow
    )
    assert found.mean == pytest.approx(256 * coefficient_of_a_pair(1000.0, 10.0), rel=0.1)
    assert found.mean < 0.4 * found.d / 2  # a regular loss of as many dimensions has d/2


def test_what_else_was_frozen_from_collection_stays_so():
    features, inputs = at(2, lambda w: w)
    gc.unfreeze()  # what the tests themselves froze
    assert gc.get_freeze_count() == 0
    call = {"inputs": inputs, "loss": square, "along": "all", "n_chains": 1, "n_steps": 8, "batch_size": 8}
    pf.development.learning_coefficient(features, **call)
    assert gc.get_freeze_count() == 0
    gc.freeze()
    try:
        pf.development.learning_coefficient(features, **call)
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


class Hiding(Outputs):
    """Its loss stays finite whatever the weights are, as of a model that turns NaN attention into zeros."""

    def forward(self, x):
        return super().forward(x).nan_to_num(0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def few():
    return at(4, lambda w: w)


def estimate(features, inputs, **changes):
    call = {"along": "all", "loss": square, "n_chains": 2, "n_steps": 16, "batch_size": 8, "max_r_hat": float("inf")}
    return pf.development.learning_coefficient(features, inputs=inputs, **call | changes)


@pytest.mark.parametrize("along", ["all", "span", 0])
@pytest.mark.parametrize(("lr", "localization"), [(10.0, 100.0), (0.04, 100.0), (4.0, 1.0)])
def test_steps_that_overshoot_are_refused_before_any(few, monkeypatch, along, lr, localization):
    monkeypatch.setattr("param_features.development.local_learning.sampled_losses", None)
    with pytest.raises(SettingError, match="every chain diverge"):
        estimate(*few, along=along, lr=lr, localization=localization)


@pytest.mark.parametrize("setting", [{"lr": float("nan")}, {"lr": float("inf")}, {"localization": float("inf")}])
def test_settings_are_finite(few, setting):
    with pytest.raises(SettingError, match="both finite"):
        estimate(*few, **setting)


@pytest.mark.parametrize("n_chains", [1, 2])
@pytest.mark.parametrize(("n_beta", "localization"), [(1e8, 1.0), (1e30, 1.0), (1e30, 0.0)])
def test_a_diverged_chain_is_seen_by_its_weights(n_chains, n_beta, localization):
    """The curvature 2 nβ, not localisation, throws the chain out; the losses are finite and agree."""
    model = Hiding(4, lambda w: w)
    fit = {"n_features": 2, "l0": 1, "steps": 2, "divergence": "sum", "progress": False, "reference": "mean"}
    with torch.no_grad():
        model.weight.sub_(0.7)
        features = pf.decompose(model, "weight", inputs=torch.rand(64, 1) + 0.5, **fit)
        model.weight.add_(0.7)
    with pytest.raises(ConvergenceError, match="A chain diverged"):
        estimate(features, torch.ones(8, 1), n_chains=n_chains, n_beta=n_beta, lr=1e-2, localization=localization)


def test_one_chain_says_that_nothing_tells_whether_it_settled(few):
    text = repr(estimate(*few, n_chains=1))
    assert "of one chain, so nothing tells whether it has settled" in text
    assert "nan" not in text


def result(of_chains, batch_noise=0.0):
    of_chains = torch.tensor(of_chains)
    return pf.development.LearningCoefficient(of_chains, of_chains[:, None], 0.0, 1.0, 0, 1.0, 4, batch_noise)


@pytest.mark.parametrize(
    ("found", "is_below"),
    [
        (result([-1e-5, -1.1e-5]), False),
        (result([-1e-5]), False),
        (result([-0.1, 0.05]), False),
        (result([-0.3, -0.3001], batch_noise=0.2), False),
        (result([0.3, 0.4]), False),
        (result([-0.3, -0.31], batch_noise=0.01), True),
        (result([-0.3]), True),
    ],
)
def test_a_minimum_is_doubted_only_where_the_estimate_is_clearly_below_zero(found, is_below):
    assert ("no minimum" in repr(found)) == is_below
    assert "-0.000" not in repr(found)


def test_the_draw_of_batches_is_part_of_the_spread():
    """Chains see the same batches, so that all of them may lie below 0 at a minimum."""
    features, _ = at(4, lambda w: w)
    inputs = torch.linspace(0, 3, 64)[:, None]
    found = estimate(features, inputs, loss=lambda output: output[:, 0] + torch.linspace(0, 3, 64)[: len(output)], lr=1e-9)
    assert found.batch_noise > 10 * found.std
