"""Whatever trains something refuses to return what diverged."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import NonFiniteError, SettingError
from param_features.fit import LINEAR, ranked_fit
from param_features.fit.formats import LowRank
from param_features.gradients import Dense, GradientStore


def store():
    gradients = {"w": Dense(torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0)))}
    found = GradientStore(8, gradients)
    found.add(gradients)
    return found


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_a_fit_with_such_directions_is_refused(bad, which):
    directions = [LowRank({"w": (torch.ones(2, 3, 1), torch.ones(2, 4, 1))}) for _ in range(2)]
    directions[which].tensors[1][0, 0] = bad
    with pytest.raises(NonFiniteError, match="The fit diverged.*smaller lr="):
        ranked_fit(store(), *directions, 1.0, 5, LINEAR)


def test_a_climb_that_overflows_is_refused():
    fit = pf.HessianSettings(steps=3, lr=9e29, batch_size=8)
    call = {"n_features": 2, "l0": 1, "method": "hessian", "fit": fit, "progress": False}
    with pytest.raises(NonFiniteError, match="The fit diverged"):
        pf.decompose(nn.Linear(4, 3), "weight", inputs=torch.randn(40, 4), **call)


@pytest.mark.parametrize("kind", [pf.FitSettings, pf.HessianSettings])
@pytest.mark.parametrize("lr", [float("nan"), float("inf"), 1e38, 0.0, -1.0])
def test_a_learning_rate_that_no_float_holds_is_refused(kind, lr):
    with pytest.raises(SettingError, match="lr="):
        kind(lr=lr)


class Hiding(nn.Module):
    """Its output hides NaN, as attention does in TransformerLens, and its gradient does not."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x):
        scores = self.inner(x)
        pattern = (scores - scores.detach().square()).softmax(-1)
        return torch.where(pattern.isnan(), 0.0, pattern)


def test_a_finetuning_of_which_only_the_gradient_is_nan_is_refused():
    features = pf.decompose(Hiding(), "inner.weight", inputs=torch.randn(40, 4), n_features=2, l0=1, steps=3, progress=False)
    with pytest.raises(NonFiniteError, match="its gradient is not"):
        call = {"inputs": torch.randn(8, 4), "loss": lambda output, _: output.mean(), "progress": False}
        features.finetune(None, [0, 1], lr=1e25, steps=5, **call)


def test_a_finetuning_that_makes_it_worse_says_so():
    model, x = nn.Linear(4, 1), torch.randn(40, 4)
    features = pf.decompose(model, "weight", inputs=x, n_features=2, l0=1, steps=3, divergence="se", progress=False)
    call = {"inputs": x, "loss": lambda output, _: output.square().mean(), "progress": False}
    assert "did not fall: take a smaller lr=" in repr(features.finetune(None, [0, 1], lr=1e3, steps=2, **call))
    assert "did not fall" not in repr(features.finetune(None, [0, 1], lr=1e-3, steps=2, **call))
