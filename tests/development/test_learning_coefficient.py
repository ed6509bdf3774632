"""Learning coefficients that are known: d/2 of a quadratic, and that of w₁²w₂² by integration."""

import gc

import pytest
import torch
from torch import nn

import param_features as pf

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
