"""Choosing parameters, viewing them as matrices, replacing, editing and fingerprinting them."""

import re

import pytest
import torch
from einops import rearrange
from torch import nn

import param_features as pf
from param_features.errors import EmptySelectionError, NoGradientError, NonFiniteError, SettingError, UnknownParameterError
from param_features.params import Layout, ParamSubset, ParamView, adapter_for, default_fold, select
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
    return select(adapter.views(), spec, adapter.aliases(), adapter.parts())


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
        ("blocks.0.attn.w_q", r"nearest: 'blocks.0.attn.W_Q'"),
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


@pytest.mark.parametrize(
    ("model", "name", "modes", "text"),
    [
        ("zoo", "scalar", ((1,), (1,)), "1×1"),
        ("zoo", "linear.bias", ((5,), (1,)), "5×1"),
        ("zoo", "embed.weight", ((3,), (5,)), "3×5"),
        ("zoo", "conv.weight", ((4,), (2, 3, 2)), "4×2·3·2"),
        ("grouped", "blocks.0.attn.W_Q", ((4, 8), (16,)), "4·8×16"),
        ("grouped", "blocks.0.attn.W_O", ((16,), (4, 8)), "16×4·8"),
        ("grouped", "blocks.0.attn.b_Q", ((4, 8), (1,)), "4·8×1"),
    ],
)
def test_modes_are_the_axes_that_the_fold_runs_through(model, name, modes, text, request):
    view = subset_of(request.getfixturevalue(model), name).views[0]
    assert (view.modes, str(view.modes)) == (modes, text)
    tensor = torch.randn(view.shape)
    left, right = view.fold.split("->")
    in_order = rearrange(tensor, f"{left} -> {right.translate({40: None, 41: None})}")
    assert torch.equal(view.to_matrix(tensor).flatten(), in_order.flatten())


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


class Fused(nn.Module):
    """Attention whose queries, keys and values lie in one tensor, and a recurrent layer with its gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)
        self.lstm = nn.LSTM(3, 2)


@pytest.fixture
def fused():
    return randomised(Fused())


QKV = [f"first.in_proj_weight[{part}]" for part in "qkv"]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("first.in_proj_weight[k]", [QKV[1]]),
        ("first.in_proj_weight[q|k]", QKV[:2]),
        ("first.in_proj_weight[k|q]", QKV[:2]),
        ("first.in_proj_weight[*]", QKV),
        ("first.in_proj_*[v]", [QKV[2], "first.in_proj_bias[v]"]),
        ("*.in_proj_weight[k]", [QKV[1], "second.in_proj_weight[k]"]),
        ("f*[q]", [QKV[0], "first.in_proj_bias[q]"]),
        (
            "lstm.*[f|o]",
            [f"lstm.{kind}_{to}_l0[{gate}]" for kind in ("weight", "bias") for to in ("ih", "hh") for gate in "fo"],
        ),
        ([QKV[2], QKV[0], "second.in_proj_weight"], ["second.in_proj_weight", QKV[0], QKV[2]]),
        ([QKV[0], re.compile(r"first\.in_proj_weight\[[qv]\]")], [QKV[0], QKV[2]]),
    ],
    ids=str,
)
def test_selecting_parts_of_fused_matrices(fused, spec, names):
    found = subset_of(fused, spec)
    assert sorted(found.names) == sorted(names)
    assert [name for name in adapter_for(fused).parts() if name in names] == [n for n in found.names if "[" in n]


@pytest.mark.parametrize(
    "spec",
    ["*", "first.*", "*weight*", "first.in_proj_weight*", "first.in_proj_weigh[t]", "?irst.in_proj_weight", re.compile(".*"),
     re.compile(r"first\.in_proj_weight.*")],
    ids=str,
)  # fmt: skip
def test_ordinary_globs_and_regexes_take_matrices_whole(fused, spec):
    found = subset_of(fused, spec)
    assert "first.in_proj_weight" in found.names
    assert not any(view.layout.part for view in found.views)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("first.in_proj_weight[z]", r"nearest: 'first.in_proj_weight\[[qkv]\]'"),
        ("first.out_proj.weight[q]", "No parameter matches"),
        ("first.in_proj_weight[q", "No parameter matches"),
        ("third.*[q]", "No parameter matches"),
        (re.compile(r".*\[z\]"), "has 12 parameters"),
    ],
    ids=str,
)
def test_parts_that_are_not_there_are_refused(fused, spec, message):
    with pytest.raises(UnknownParameterError, match=message):
        subset_of(fused, spec)


@pytest.mark.parametrize("spec", [["first.in_proj_weight", QKV[1]], ["*", "second.*bias[q]"], [QKV[0], "first.in_proj_*"]])
def test_a_matrix_is_not_chosen_whole_and_in_part(fused, spec):
    with pytest.raises(SettingError, match=r"whole and its part '(first|second)\.in_proj_\w+\[[qk]\]' again"):
        subset_of(fused, spec)


def test_a_part_of_another_matrix_goes_with_a_whole_one(fused):
    assert len(subset_of(fused, ["first.in_proj_weight", "second.in_proj_weight[q|k]"]).names) == 3


def test_parts_are_slices_of_the_whole_and_listed(fused):
    whole = fused.first.in_proj_weight
    found = subset_of(fused, "first.in_proj_weight[*]")
    assert all(torch.equal(view.tensor, rows) for view, rows in zip(found.views, whole.split(4), strict=True))
    assert found.n_params == whole.numel()
    parts = {row.name: row.parts for row in pf.list_params(fused)}
    assert parts["first.in_proj_weight"] == ("q", "k", "v")
    assert parts["lstm.bias_hh_l0"] == ("i", "f", "g", "o")
    assert parts["first.out_proj.weight"] == ()


def in_halves():
    """A linear layer whose matrix is stored [in, out], its two halves of outputs named; and the layer."""
    layer = nn.Linear(6, 3)  # stored [3, 6]: three inputs, six outputs
    views = [
        ParamView(f"half {part}", layer, "weight", "o i -> o i", layout=Layout("i o -> o i", (), (3 * part, 3 * part + 3)))
        for part in range(2)
    ]
    return layer, ParamSubset(tuple(views))


@pytest.mark.parametrize("error", EXITS)
@pytest.mark.parametrize("kind", ["pieces", "transposed halves"])
def test_replaced_takes_two_parts_of_one_tensor(fused, kind, error):
    layer, subset = (
        in_halves() if kind == "transposed halves" else (fused.first, subset_of(fused, "first.in_proj_weight[q|v]"))
    )
    attribute = subset.views[0].attribute
    parameter, before = layer._parameters[attribute], layer._parameters[attribute].detach().clone()
    stand_ins = {name: torch.full_like(tensor, 2.0 + n) for n, (name, tensor) in enumerate(subset.tensors.items())}
    with leaving_by(error), subset.replaced(stand_ins):
        assert all(torch.equal(subset.tensors[name], stand_in) for name, stand_in in stand_ins.items())
        if kind == "pieces":
            assert torch.equal(fused.first.in_proj_weight[4:8], before[4:8])
        leave(error)
    assert layer._parameters[attribute] is parameter
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("error", EXITS)
@pytest.mark.parametrize("kind", ["pieces", "transposed halves"])
def test_edited_takes_two_parts_of_one_tensor(fused, kind, error):
    layer, subset = (
        in_halves() if kind == "transposed halves" else (fused.first, subset_of(fused, "first.in_proj_weight[q|v]"))
    )
    parameter = layer._parameters[subset.views[0].attribute]
    before = parameter.detach().clone()
    old = {name: tensor.detach().clone() for name, tensor in subset.tensors.items()}
    deltas = {name: torch.full_like(tensor, 1.0 + n) for n, (name, tensor) in enumerate(old.items())}
    with leaving_by(error), subset.edited(deltas):
        assert layer._parameters[subset.views[0].attribute] is parameter
        assert all(torch.equal(subset.tensors[name], old[name] + delta) for name, delta in deltas.items())
        if kind == "pieces":
            assert torch.equal(fused.first.in_proj_weight[4:8], before[4:8])
        leave(error)
    assert torch.equal(parameter, before)


def test_one_weight_has_one_fingerprint_however_it_is_stored():
    layer, other, heads = nn.Linear(3, 4), nn.Linear(4, 3), Holder((2, 3, 2))
    with torch.no_grad():
        other.weight.copy_(layer.weight.T)
        heads.tensor.copy_(layer.weight.reshape(2, 2, 3).mT)
    views = [
        ParamView("as stored", layer, "weight", "o i -> o i"),
        ParamView("[in, out]", other, "weight", "i o -> o i"),
        ParamView("read transposed", other, "weight", "o i -> o i", layout=Layout("i o -> o i")),
        ParamView("by head", heads, "tensor", "head i o -> (head o) i"),
        ParamView("by head in a linear layer", layer, "weight", "head i o -> (head o) i",
                  layout=Layout("(head o) i -> head i o", (("head", 2),))),
    ]  # fmt: skip
    assert len(set(ParamSubset(tuple(views)).fingerprint().values())) == 1
    wrong = ParamView("wrong way round", other, "weight", "o i -> o i")
    assert len(set(ParamSubset((views[0], wrong)).fingerprint().values())) == 2
    before = ParamSubset(tuple(views)).fingerprint()
    for one in (layer, other, heads):
        one.double()
    assert not set(ParamSubset(tuple(views)).fingerprint().values()) & set(before.values())
