"""Models that use their layers in other ways: rules hold or give way, and the gradients are right either way."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from param_features.errors import AdapterError
from param_features.gradients import GradientEngine
from tests.models import Between, built, integers, normal
from tests.oracle import assert_equal_gradients, assert_every_route_agrees, case_of


class Twice(nn.Module):
    """A module used twice, in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(torch.tanh(self.inner(x)))


class TiedLinear(nn.Module):
    """Two layers that hold one Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Language(nn.Module):
    """Embedding, linear layer and logits; the embedding and the logits may be tied."""

    def __init__(self, *, is_tied: bool, d_model: int = 4) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(7, d_model), nn.Linear(d_model, d_model)
        self.lm_head = nn.Linear(d_model, 7, bias=False)
        if is_tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.lm_head(x.cumsum(1) + torch.tanh(self.mix(x)))


class Inplace(nn.Module):
    """In-place activations right after a tapped layer and right before one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.LayerNorm(4), nn.SiLU(inplace=True))
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layers(x).mul_(2))


class Merged(nn.Module):
    """Merges batch and positions into one axis before its layers, as OPT's MLP does."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 2))

    def forward(self, x):
        return self.layers(x.flatten(0, 1)).unflatten(0, x.shape[:2]).cumsum(1)


class Positions(nn.Embedding):
    """A table of positions that is called with something else than indices."""

    def forward(self, x):
        return super().forward(torch.arange(x.shape[1])) + x.unsqueeze(2)


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (Merged(), {"inputs": normal(3, 5, 4)}),
        (Merged(), {"inputs": normal(3, 3, 4)}),
        (Twice(), {"inputs": normal(3, 4)}),
        (TiedLinear(), {"inputs": normal(3, 4)}),
        (Language(is_tied=False), {"tokens": integers(7, 3, 5)}),
        (Inplace(), {"inputs": normal(3, 5)}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_models_keep_their_rules(model, call):
    case = case_of(built(model), **call)
    assert case.engine.routes.why_dense == {}
    assert_every_route_agrees(case)


@pytest.mark.parametrize("d_model", [4, 7], ids=["oblong", "square"])
def test_embedding_tied_with_the_logits_is_right(d_model):
    """The two uses see the table transposed; with as many features as tokens, no shape gives that away."""
    case = case_of(built(Language(is_tied=True, d_model=d_model)), tokens=integers(7, 3, 5))
    assert set(case.engine.routes.watched) == {"embed.weight"}
    assert_every_route_agrees(case)


class Elsewhere(nn.Module):
    """Uses a layer's weight and bias outside the layer as well."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return functional.linear(self.other(self.layer(x)), self.layer.weight, self.layer.bias)


class SequenceFirst(nn.Module):
    """Calls a layer on [seq, batch, d]."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = torch.tanh(self.inside(x.transpose(0, 1))).transpose(0, 1)
        return self.outside(y).cumsum(1)


class Scaled(nn.Linear):
    """A subclass of a layer with a rule, whose forward is another."""

    def forward(self, x):
        return functional.linear(x, 2 * self.weight, self.bias)


class Unhooked(nn.Module):
    """Calls a layer's forward directly, past its hooks; and never calls another."""

    def __init__(self) -> None:
        super().__init__()
        self.past, self.never = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.past.forward(x)


class Cached(nn.Module):
    """Keeps a second handle on its weight, which no replacement of the parameter reaches."""

    def __init__(self, *, with_layer: bool) -> None:
        super().__init__()
        self.layer, self.with_layer = nn.Linear(4, 3), with_layer
        self.handles = [self.layer.weight]

    def forward(self, x):
        return x @ self.handles[0].T + (self.layer(x) if self.with_layer else self.layer.bias)


@pytest.mark.parametrize(
    ("model", "x", "dense"),
    [
        (SequenceFirst(), normal(3, 5, 4), {"inside.weight", "inside.bias"}),
        (SequenceFirst(), normal(3, 2, 4), {"inside.weight", "inside.bias"}),
        (SequenceFirst(), normal(3, 6, 4), {"inside.weight", "inside.bias"}),
        (Between(Scaled(4, 3)), normal(3, 4), {"layer.weight"}),
        (Unhooked(), normal(3, 4), {"never.weight", "never.bias"}),
        (Between(nn.ConvTranspose1d(2, 3, 3)), normal(3, 2, 5), {"layer.weight", "layer.bias"}),
        (Between(nn.Embedding(7, 3, scale_grad_by_freq=True)), integers(2, 3, 5), {"layer.weight"}),
    ],
    ids=[
        "sequence first",
        "two long",
        "six long",
        "another forward",
        "past the hooks",
        "no rule",
        "by frequency",
    ],
)
def test_a_rule_that_does_not_hold_here_gives_way_to_the_dense_route(model, x, dense):
    case = case_of(built(model), inputs=x)
    assert set(case.engine.routes.dense) == dense
    assert_every_route_agrees(case)


@pytest.mark.parametrize(
    ("model", "x", "watched"),
    [
        (Elsewhere(), normal(3, 4), {"layer.weight", "layer.bias"}),
        (Between(Positions(5, 3)), normal(3, 5), {"layer.weight"}),
    ],
    ids=["elsewhere", "positions"],
)
def test_a_rule_that_does_not_hold_here_gives_way_to_the_operations(model, x, watched):
    case = case_of(built(model), inputs=x)
    assert set(case.engine.routes.watched) == watched
    assert case.engine.routes.dense == ()
    assert_every_route_agrees(case)


def test_sparse_gradients_are_read_as_ordinary_ones():
    case = case_of(built(Between(nn.Embedding(7, 3, sparse=True))), inputs=integers(7, 3, 5))
    found, expected = case.gradients()[0], {name: grad.to_dense() for name, grad in case.by_autograd().items()}
    assert_equal_gradients(found, expected)
    assert_equal_gradients(case.dense(is_vmapped=False).gradients()[0], expected)


@pytest.mark.parametrize("with_layer", [False, True], ids=["only", "too"])
def test_a_second_handle_on_a_parameter_is_refused(with_layer):
    """Replacing the parameter would not reach every use: gradients would be zero, or half of the truth."""
    with pytest.raises(AdapterError, match=r"'layer.weight' past the module.*leave it out"):
        case_of(built(Cached(with_layer=with_layer)), "layer.weight", inputs=normal(3, 4))
    assert_every_route_agrees(case_of(built(Cached(with_layer=with_layer)), "layer.bias", inputs=normal(3, 4)))


def test_rules_that_fail_only_together_are_not_used(monkeypatch):
    factored = GradientEngine._factored

    def failing(engine, *args, **kwargs):
        if len(engine.routes.factored) > 1:
            raise RuntimeError("never two at once")
        return factored(engine, *args, **kwargs)

    monkeypatch.setattr(GradientEngine, "_factored", failing)
    case = case_of(built(Between(nn.Linear(4, 3))), inputs=normal(3, 4))
    assert set(case.engine.routes.why_dense.values()) == {"its rule failed beside the others': never two at once"}
    assert_every_route_agrees(case)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.out = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, 1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].cumsum(1)


@pytest.mark.parametrize(
    ("model", "x", "ruled"),
    [
        (Recurrent(), normal(3, 4, 3), {"out.weight", "out.bias"}),
        (Attention(), normal(3, 5, 8), set()),
        (
            Between(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)),
            normal(3, 5, 8),
            {f"layer.{part}.{kind}" for part in ("linear1", "linear2", "norm1", "norm2") for kind in ("weight", "bias")},
        ),
    ],
    ids=["lstm", "attention", "encoder layer"],
)
def test_torchs_own_blocks(model, x, ruled):
    case = case_of(built(model), inputs=x)
    assert set(case.engine.routes.taps) == ruled
    assert set(case.engine.routes.watched) == set(case.engine.subset.names) - ruled
    assert_every_route_agrees(case, vmaps=not isinstance(model, Recurrent))


def test_the_dense_route_maps_attention_without_looping_over_it(monkeypatch):
    monkeypatch.setattr(warnings, "filterwarnings", lambda *_: None)
    case_of(built(Attention()), inputs=normal(3, 5, 8)).dense(is_vmapped=True).gradients()
