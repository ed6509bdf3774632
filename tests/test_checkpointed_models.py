"""Models that checkpoint a part at every call: each analysis gives what it gives without, or is refused by name."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import param_features as pf
from param_features.errors import ModelStateError
from tests.adapters.zoo import assert_same, snapshot
from tests.models import normal, randomised

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
TOKENS = torch.randint(0, 11, (20, 5), generator=torch.Generator().manual_seed(0))
NAMES = ("embed.weight", "middle.0.weight")  # below the checkpointed part, and in it


class Checkpointed(nn.Module):
    """Logits over 11 tokens, with a part in the middle that is run again in the backward pass."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.embed, self.middle = nn.Embedding(11, 6), nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head, self.use_reentrant = nn.Linear(6, 11), use_reentrant

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.use_reentrant is None:
            return self.head(self.middle(x))
        return self.head(checkpoint(self.middle, x, use_reentrant=self.use_reentrant))


def model_of(use_reentrant: bool | None) -> Checkpointed:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return randomised(Checkpointed(use_reentrant))


def assert_equal(found: Any, right: Any) -> None:
    if isinstance(right, Tensor):
        torch.testing.assert_close(found, right, equal_nan=True)
    else:
        assert found == right


def decomposed(model: nn.Module, name: str) -> pf.ParamFeatures:
    return pf.decompose(model, name, TOKENS, n_features=3, l0=1, steps=5, n_samples=30, progress=False)


def learning_coefficient(features: pf.ParamFeatures) -> Any:
    settings = {"n_steps": 8, "n_burn_in": 2, "n_chains": 1, "batch_size": 8, "max_r_hat": math.inf}
    return pf.development.learning_coefficient(features, TOKENS, **settings).losses


ANALYSES: dict[str, Callable[[pf.ParamFeatures], Any]] = {
    "activations": lambda features: features.activations(TOKENS),
    "top_logits": lambda features: str(features.top_logits(1, n_examples=4)),
    "audit": lambda features: torch.tensor([row.value for row in features.audit(TOKENS).rows if row.value is not None]),
    "finetune": lambda features: features.finetune(TOKENS, features=2, steps=3, progress=False).coefficients,
    "learning_coefficient": learning_coefficient,
}
WITHOUT_CHOSEN_GRADIENTS = {("embed.weight", "learning_coefficient")}
"""By a plain `backward()`, which reentrant checkpointing allows below a chosen tensor."""


@pytest.fixture(scope="module")
def fitted() -> dict[str, tuple[Checkpointed, pf.ParamFeatures]]:
    models = {name: model_of(None) for name in NAMES}
    return {name: (model, decomposed(model, name)) for name, model in models.items()}


@pytest.mark.parametrize("analysis", ANALYSES)
@pytest.mark.parametrize("name", NAMES)
def test_an_analysis_of_a_checkpointed_model(name, analysis, fitted):
    model, features = fitted[name]
    model.use_reentrant, before = None, snapshot(model)
    right = ANALYSES[analysis](features)
    model.use_reentrant = False
    assert_equal(ANALYSES[analysis](features), right)
    model.use_reentrant = True
    if (name, analysis) in WITHOUT_CHOSEN_GRADIENTS:
        assert_equal(ANALYSES[analysis](features), right)
    else:
        with pytest.raises(ModelStateError, match=r"reentrant gradient checkpointing.*use_reentrant=False"):
            ANALYSES[analysis](features)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("params", ["embed.weight", "middle.0.weight", "middle.2.bias", "*"])
def test_parameters_below_or_in_a_reentrant_part_are_refused_and_those_above_are_not(params):
    model = model_of(True)
    with pytest.raises(ModelStateError, match=r"reentrant gradient checkpointing.*use_reentrant=False"):
        decomposed(model, params)
    assert decomposed(model, "head.*").n_features == 3


def test_other_errors_of_a_backward_pass_stay_as_they_are():
    class Broken(torch.autograd.Function):
        """The identity, whose backward pass fails."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise ZeroDivisionError("no gradient")

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    model[1].register_forward_hook(lambda module, args, output: Broken.apply(output))
    with pytest.raises(ZeroDivisionError, match="no gradient"):
        pf.decompose(model, "0.weight", inputs=normal(20, 4).float(), n_features=2, l0=1, steps=2, progress=False)
