"""Where a layer has no forward mode, every analysis gives what forward mode gives on a twin that computes the same."""

import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import param_features as pf
from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.effects import read_subject
from param_features.circuits.find import edge_weights
from param_features.errors import ModelStateError
from param_features.fit.curvature import curvatures
from param_features.gradients import double_backward, has_forward_mode, output_changes
from param_features.problem import KL
from tests.adapters.zoo import seeded
from tests.models import randomised

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")

TOKENS = torch.randint(9, (24, 6), generator=torch.Generator().manual_seed(0))
CALL = {"n_features": 4, "l0": 1, "steps": 4, "progress": False}
PARAMS = ["below.weight", "above.weight"]


class Tanh(torch.autograd.Function):
    """tanh as libraries write functions that functorch cannot transform."""

    @staticmethod
    def forward(ctx, x):
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.square())


class OnceTanh(Tanh):
    backward = staticmethod(once_differentiable(Tanh.backward))


class LostTanh(Tanh):
    """Its backward pass leaves no graph and does not say so, as one that calls a kernel of its own."""

    @staticmethod
    def backward(ctx, gradient):
        with torch.no_grad():
            return Tanh.backward(ctx, gradient)


def asking(x):
    """What transformers' `enable_input_require_grads` hangs on an embedding, and gradient checkpointing with it."""
    return torch.tanh(x.requires_grad_())


def through_checkpoint(x):
    return checkpoint(torch.tanh, x, use_reentrant=True)


BENDS = {
    "custom function": Tanh.apply,
    "once differentiable": OnceTanh.apply,
    "lost graph": LostTanh.apply,
    "requires_grad_": asking,
    "checkpoint": through_checkpoint,
}


class Bent(nn.Module):
    def __init__(self, bend) -> None:
        super().__init__()
        self.embed, self.below, self.above = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, 5)
        self.lm_head, self.bend, self.is_low = nn.Linear(5, 9), bend, bend in (asking, through_checkpoint)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = self.below(self.bend(x) if self.is_low else torch.tanh(x))
        x = x if self.is_low else self.bend(x)
        return self.lm_head(torch.tanh(self.above(x.cumsum(1))))


def bent(name: str) -> tuple[nn.Module, nn.Module]:
    """A model without forward mode, and its twin."""
    model, twin = (seeded(Bent, bend) for bend in (BENDS[name], torch.tanh))
    twin.is_low = model.is_low
    return model, twin


@pytest.fixture(scope="module", params=BENDS)
def both(request):
    """The same fits of two layers on a model without forward mode and on its twin."""
    return [{name: pf.decompose(model, name, TOKENS, **CALL) for name in PARAMS} for model in bent(request.param)]


@pytest.fixture
def below(both):
    return [fits["below.weight"] for fits in both]


def equal(found, expected):
    assert expected.abs().max() > 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("route", ["auto", "jvp", "vjp"])
def test_activations(below, route):
    model, twin = below
    equal(model.activations(TOKENS[:3], route=route), twin.activations(TOKENS[:3], route="jvp"))
    assert has_forward_mode(twin.engine, twin.own_examples)
    assert not has_forward_mode(model.engine, model.own_examples)


def test_what_stands_on_them(below):
    model, twin = below
    places = [[(example.row, example.position) for example in features.top_examples(1, 3)] for features in below]
    assert places[0] == places[1]
    for ours, theirs in zip(model.top_logits(1, 3).up, twin.top_logits(1, 3).up, strict=True):
        assert ours == (theirs[0], pytest.approx(theirs[1], rel=1e-5))


def test_output_changes_and_curvatures(below):
    directions, rows = below[1].v_out, below[1].own_examples.rows(slice(0, 2))
    equal(*(output_changes(features.engine, directions.materialize(), rows) for features in below))
    equal(*(curvatures(features.engine, KL(), directions, rows) for features in below))


def test_edges_of_circuits(both):
    weights = []
    for fits in both:
        subject = ablating(read_subject(fits, TOKENS[:2], None, "loss", None), Ablation("zero", None, None, 0))
        weights.append(edge_weights(subject, torch.arange(len(subject.names)) % 2 == 0))
    equal(*weights)


def test_the_hessian_method():
    call = CALL | {"method": "hessian", "steps": 2}
    fits = [pf.decompose(model, "below.weight", TOKENS[:8], **call) for model in bent("custom function")]
    equal(*(features.v_out.materialize()["below.weight"] for features in fits))


def test_what_torch_cannot_differentiate_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(double_backward, "_MOST_ROWS", 10)
    features = pf.decompose(bent("lost graph")[0], "below.weight", TOKENS, **CALL)
    assert features.activations(TOKENS[:3]).any()
    with pytest.raises(ModelStateError, match="Neither forward mode nor .* LostTanh.* Give fewer inputs"):
        features.top_logits(0)


class Normed(nn.Module):
    def __init__(self, norm) -> None:
        super().__init__()
        self.embed, self.layer, self.lm_head = nn.Embedding(9, 5), norm(nn.Linear(5, 5)), nn.Linear(5, 9)

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.layer(self.embed(tokens)).cumsum(1)))


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm(norm):
    features = pf.decompose(randomised(Normed(norm)), "layer.*", TOKENS, **CALL)
    by_jvp, by_vjp = (features.activations(TOKENS[:3], route=route) for route in ("jvp", "vjp"))
    torch.testing.assert_close(by_jvp, by_vjp, rtol=1e-4, atol=1e-6)
    assert features.top_logits(0, 2).up
