"""Choosing parameters, viewing them as matrices, replacing, editing and fingerprinting them."""

import re

import pytest
import torch
from einops import rearrange
from param_features.adapters import adapter_for
from torch import nn

from param_features.errors import EmptySelectionError, NoGradientError, NonFiniteError, UnknownParameterError
from param_features.params import ParamSubset, default_fold, select
from tests.exits import EXITS, leave, leaving_by
from tests.models import hooked_transformer, randomised


class Zoo(nn.Module):
    """A parameter of every number of axes, one tensor in two places, one module in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.scalar = nn.Parameter(torch.tensor(1.5))
        self.embed = nn.Embedding(5, 3)
        self.linear = nn.Linear(3, 5)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight
        self.again = self.linear
        self.conv = nn.Conv2d(2, 4, (3, 2))
        self.norm = nn.LayerNorm((2, 3))


def subset_of(model, spec="*") -> ParamSubset:
    adapter = adapter_for(model)
    return select(adapter.views(), spec, adapter.aliases())


@pytest.fixture(scope="module")
def grouped():
    pytest.importorskip("transformer_lens")
    return hooked_transformer(n_heads=4, n_key_value_heads=2, gated_mlp=True, act_fn="silu")


@pytest.fixture
def zoo():
    return randomised(Zoo())


ATTENTION = [f"blocks.{layer}.attn.{name}" for layer in range(2) for name in ("W_Q", "_W_K")]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("blocks.0.attn.W_Q", ["blocks.0.attn.W_Q"]),
        ("blocks.0.attn.W_K", ["blocks.0.attn._W_K"]),
        ("blocks.0.attn._W_K", ["blocks.0.attn._W_K"]),
        ("blocks.*.attn.W_[KQ]", ATTENTION),
        (re.compile(r"blocks\.\d\.attn\.W_[KQ]"), ATTENTION),
        (re.compile(r".*W_K"), ATTENTION[1::2]),
        (["blocks.1.attn.W_K", "blocks.0.attn.W_Q"], [ATTENTION[0], ATTENTION[3]]),
        (["blocks.0.attn.W_K", "blocks.0.attn._W_K", re.compile("blocks.0.attn.W_K")], ["blocks.0.attn._W_K"]),
        (("embed.W_E", "unembed.?_U"), ["embed.W_E", "unembed.W_U", "unembed.b_U"]),
        ("blocks.1.attn.b_V", ["blocks.1.attn._b_V"]),
    ],
    ids=str,
)
def test_selecting_by_name_glob_regex_list_and_alias(grouped, spec, names):
    assert list(subset_of(grouped, spec).names) == names


@pytest.mark.parametrize(
    ("spec", "real"),
    [
        ("head.weight", "embed.weight"),
        ("again.weight", "linear.weight"),
        ("again.*", "linear.weight"),
        ("scalar", "scalar"),
    ],
)
def test_other_names_of_shared_tensors_and_modules(zoo, spec, real):
    assert real in subset_of(zoo, spec).names
    assert len(subset_of(zoo).names) == len(list(zoo.parameters()))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("blocks.7.attn.W_K", r"'blocks.7.attn.W_K'.*nearest: 'blocks.1.attn.W_K'.*pf\.list_params"),
        ("block.0.attn.W_Q", r"nearest: 'blocks.0.attn.W_Q'"),
        ("blocks.*.attn.W_k", r"No parameter matches 'blocks\.\*\.attn\.W_k'"),
        (re.compile("blocks.0.attn"), r"No parameter matches 'blocks.0.attn'.* has 40 parameters"),
        (["embed.W_E", "zzz"], r"'zzz'.*nearest: none"),
    ],
    ids=str,
)
def test_unknown_names_list_the_nearest(grouped, spec, message):
    with pytest.raises(UnknownParameterError, match=message):
        subset_of(grouped, spec)
    with pytest.raises(KeyError):
        subset_of(grouped, spec)


@pytest.mark.parametrize("spec", ["", [], ["embed.W_E", ""]])
def test_an_empty_selection_is_refused(grouped, spec):
    with pytest.raises(EmptySelectionError, match="chooses no parameter"):
        subset_of(grouped, spec)


@pytest.mark.parametrize("n_dims", range(6))
@pytest.mark.parametrize("n_leading", [0, 1, 2])
def test_default_fold_puts_the_first_axis_out_and_the_others_in(n_dims, n_leading):
    shape = (2, 3, 1, 4, 2)[:n_dims]
    found = rearrange(torch.randn(shape), default_fold(n_dims))
    assert found.shape == (shape[0] if shape else 1, torch.Size(shape[1:]).numel())
    view = ParamSubset(tuple(adapter_for(holder := Holder(shape)).views().values())).views[0]
    tensor = torch.randn((*(5, 2)[:n_leading], *shape))
    assert torch.equal(view.to_matrix(tensor).flatten(n_leading), tensor.flatten(n_leading) if shape else tensor[..., None])
    assert torch.equal(view.from_matrix(view.to_matrix(tensor)), tensor)
    assert view.matrix_shape == view.to_matrix(holder.tensor.detach()).shape


class Holder(nn.Module):
    def __init__(self, shape) -> None:
        super().__init__()
        self.tensor = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize("model", ["grouped", "zoo"])
def test_every_view_goes_to_a_matrix_and_back(model, request):
    for view in subset_of(request.getfixturevalue(model)).views:
        tensor = torch.randn(2, *view.shape)
        matrix = view.to_matrix(tensor)
        assert matrix.shape == (2, *view.matrix_shape), view.name
        assert torch.equal(view.from_matrix(matrix), tensor), view.name
        assert torch.equal(view.to_matrix(tensor[0]), matrix[0]), view.name


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("blocks.0.attn.W_Q", lambda W: W.permute(0, 2, 1).reshape(32, 16)),
        ("blocks.0.attn._W_K", lambda W: torch.cat([head.T for head in W])),
        ("blocks.0.attn.W_O", lambda W: torch.cat([head.T for head in W], 1)),
        ("blocks.0.attn.b_Q", lambda b: b.reshape(32, 1)),
        ("blocks.0.mlp.W_gate", lambda W: W.T),
        ("embed.W_E", lambda W: W.T),
        ("unembed.W_U", lambda W: W.T),
        ("ln_final.w", lambda w: w[:, None]),
    ],
)
def test_matrices_act_on_inputs_from_the_left(grouped, name, matrix):
    view = subset_of(grouped, name).views[0]
    assert torch.equal(view.to_matrix(view.tensor), matrix(view.tensor))


@pytest.mark.parametrize("error", EXITS)
def test_replaced_puts_the_very_same_objects_back(zoo, error):
    subset, before = subset_of(zoo, ["embed.weight", "conv.bias", "again.weight"]), dict(zoo.named_parameters())
    stand_ins = {name: torch.zeros_like(tensor) for name, tensor in subset.tensors.items()}
    with leaving_by(error), subset.replaced(stand_ins):
        assert all(subset.tensors[name] is stand_in for name, stand_in in stand_ins.items())
        assert zoo.head.weight is zoo.embed.weight is stand_ins["embed.weight"]
        assert zoo.linear.weight is stand_ins["linear.weight"]
        leave(error)
    assert all(one is before[name] for name, one in zoo.named_parameters())
    assert zoo.head.weight is zoo.embed.weight is before["embed.weight"]
    assert list(before) == [name for name, _ in zoo.named_parameters()]


def test_replaced_leaves_what_was_not_given_and_nests(zoo):
    subset, weight = subset_of(zoo, ["linear.*"]), zoo.linear.weight
    with subset.replaced({"linear.weight": torch.ones(5, 3)}):
        with subset.replaced({"linear.weight": torch.zeros(5, 3)}):
            assert not zoo.linear.weight.any()
        assert zoo.linear.weight.all()
        assert isinstance(zoo.linear.bias, nn.Parameter)
    assert zoo.linear.weight is weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("error", EXITS)
def test_edited_adds_and_restores_bit_for_bit(zoo, error, dtype):
    zoo.to(dtype)
    subset = subset_of(zoo, ["linear.weight", "embed.weight"])
    before = {name: tensor.detach().clone() for name, tensor in zoo.named_parameters()}
    deltas = {name: 1e-3 * torch.randn_like(tensor) for name, tensor in subset.tensors.items()}
    with leaving_by(error), subset.edited(deltas):
        for name, delta in deltas.items():
            assert torch.equal(subset.tensors[name], before[name] + delta)
        leave(error)
    assert all(torch.equal(tensor, before[name]) for name, tensor in zoo.named_parameters())


def test_fingerprint_changes_exactly_when_the_chosen_weights_change(zoo):
    subset = subset_of(zoo, ["linear.weight", "scalar"])
    before = subset.fingerprint()
    assert subset.fingerprint() == before
    with torch.no_grad():
        zoo.conv.bias.add_(1)
        assert subset.fingerprint() == before
        zoo.linear.weight[1, 1] = torch.nextafter(zoo.linear.weight[1, 1], torch.tensor(torch.inf))
    after = subset.fingerprint()
    assert after["scalar"] == before["scalar"]
    assert after["linear.weight"] != before["linear.weight"]


@pytest.mark.parametrize("change", [lambda t: t.double(), lambda t: t.reshape(3, 5), lambda t: t.bfloat16()])
def test_fingerprint_knows_dtype_and_shape(zoo, change):
    subset = subset_of(zoo, "linear.weight")
    with torch.no_grad():
        zoo.linear.weight.zero_()
    before = subset.fingerprint()
    with subset.replaced({"linear.weight": change(zoo.linear.weight.detach())}):
        assert subset.fingerprint() != before


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(zoo, bad):
    with torch.no_grad():
        zoo.conv.bias[1:3] = bad
    subset_of(zoo, "linear.*").check_finite()
    with pytest.raises(NonFiniteError, match="'conv.bias' holds 2 values"):
        subset_of(zoo, "*").check_finite()


def test_quantised_weights_are_refused_by_name(zoo):
    zoo.linear.weight = nn.Parameter(torch.zeros(5, 3, dtype=torch.int8), requires_grad=False)
    with pytest.raises(NoGradientError, match=r"'linear.weight' is torch.int8.*without quantisation"):
        subset_of(zoo).check_finite()


def test_sizes_are_those_of_the_tensors(zoo):
    subset = subset_of(zoo, ["linear.*", "scalar"])
    assert subset.n_params == 5 * 3 + 5 + 1
    assert subset["linear.bias"].tensor is zoo.linear.bias
