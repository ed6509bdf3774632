"""Parts of fused matrices: they tile the whole, and each is what its name says, judged by what the model does with it."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import SettingError, UnknownParameterError
from param_features.gradients import plan_engine
from param_features.params import ParamSubset, adapter_for, select
from param_features.problem import read_inputs
from tests.adapters.zoo import D_VOCAB, N_CTX, assert_same, seeded, snapshot, tokenizer
from tests.models import integers, normal
from tests.oracle import Case, problem_of

_TOKENS = {"vocab_size": D_VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
_SHORT = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": N_CTX}
_LONG = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": N_CTX}
_GROUPED = {**_LONG, "num_attention_heads": 4, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Family:
    """A transformers model with one block and a fused matrix.

    Attributes:
        kind: Prefix of its classes.
        settings: Of its configuration.
        fused: The fused weight.
        parts: Its parts and how many outputs each has.
        task: Suffix of the model's class.
        bridge: TransformerLens' names of the parts, where it can boot the model.
    """

    kind: str
    settings: dict[str, Any]
    fused: str
    parts: dict[str, int]
    task: str = "ForCausalLM"
    bridge: tuple[str, ...] = ()


_EQUAL = {"q": 16, "k": 16, "v": 16}
_QKV = tuple(f"blocks.0.attn.W_{letter}" for letter in "QKV")
FAMILIES = {
    "gpt2": Family("GPT2", _SHORT, "transformer.h.0.attn.c_attn.weight", _EQUAL, "LMHeadModel", _QKV),
    "gpt-neox": Family(
        "GPTNeoX",
        {**_LONG, "num_attention_heads": 2},
        "gpt_neox.layers.0.attention.query_key_value.weight",
        _EQUAL,
        bridge=_QKV,
    ),
    "bloom": Family(
        "Bloom",
        {"n_layer": 1, "n_head": 2, "hidden_size": 16},
        "transformer.h.0.self_attention.query_key_value.weight",
        _EQUAL,
        bridge=_QKV,
    ),
    "phi3": Family("Phi3", _GROUPED, "model.layers.0.self_attn.qkv_proj.weight", {"q": 16, "k": 8, "v": 8}, bridge=_QKV),
    "big-code": Family("GPTBigCode", {**_SHORT, "multi_query": False}, "transformer.h.0.attn.c_attn.weight", _EQUAL),
    "big-code multi-query": Family(
        "GPTBigCode",
        {**_SHORT, "multi_query": True},
        "transformer.h.0.attn.c_attn.weight",
        {"q": 16, "k": 8, "v": 8},
    ),
    "mpt": Family(
        "Mpt",
        {"n_layers": 1, "n_heads": 2, "d_model": 16, "max_seq_len": N_CTX},
        "transformer.blocks.0.attn.Wqkv.weight",
        _EQUAL,
        bridge=_QKV,
    ),
}
_GATE_UP = {"gate": 24, "up": 24}
_W_GATE = ("blocks.0.mlp.W_gate", "blocks.0.mlp.W_in")
GATED = {
    "phi3 mlp": Family("Phi3", _GROUPED, "model.layers.0.mlp.gate_up_proj.weight", _GATE_UP, bridge=_W_GATE),
    "glm4 mlp": Family(
        "Glm4", {**_GROUPED, "head_dim": 4}, "model.layers.0.mlp.gate_up_proj.weight", _GATE_UP, bridge=_W_GATE
    ),
}


class Attention(nn.Module):
    """torch's own attention layer, each position seeing the earlier ones."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        unseen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=unseen, need_weights=False)[0]


class Recurrent(nn.Module):
    """torch's own recurrent layer."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.rnn = kind(3, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


TORCH = {
    "attention": (Attention, "attention.in_proj_weight", {"q": 16, "k": 16, "v": 16}),
    "lstm": (lambda: Recurrent(nn.LSTM), "rnn.weight_hh_l1_reverse", dict.fromkeys("ifgo", 4)),
    "gru": (lambda: Recurrent(nn.GRU), "rnn.weight_ih_l0", dict.fromkeys("rzn", 4)),
}
EVERY = {**FAMILIES, **GATED, **TORCH}


@cache
def model_of(name):
    """Built once; no test changes it for good."""
    if name in TORCH:
        return seeded(TORCH[name][0])
    return _transformer(EVERY[name], torch.float64)


def _transformer(family, dtype):
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, family.kind + family.task):
        pytest.skip(f"this transformers has no {family.kind}")
    config = getattr(transformers, f"{family.kind}Config")(**family.settings, **_TOKENS)
    return seeded(getattr(transformers, family.kind + family.task), config, dtype=dtype)


def fused_of(name):
    """The fused weight's name, and the sizes of its parts."""
    return TORCH[name][1:] if name in TORCH else (EVERY[name].fused, EVERY[name].parts)


def chosen(model, params) -> ParamSubset:
    adapter = adapter_for(model)
    return select(adapter.views(), params, adapter.aliases(), adapter.parts())


def inputs_of(name, n_rows):
    if name in TORCH:
        return {"inputs": normal(n_rows, 5, 16 if name == "attention" else 3)}
    return {"tokens": integers(D_VOCAB, n_rows, 6)}


@pytest.fixture(autouse=True)
def nothing_leaks(request):
    given = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    models = [model_of(value) for value in given if isinstance(value, str) and value in EVERY]
    before = [snapshot(model) for model in models]
    yield
    for model, old in zip(models, before, strict=True):
        assert_same(old, snapshot(model))


def marked(view):
    """The stored tensor's shape, 1 where the part lies and 0 elsewhere."""
    return view.layout.write(torch.ones(view.shape, dtype=view.tensor.dtype), torch.zeros_like(view.stored))


@pytest.mark.parametrize("name", EVERY)
class TestTiling:
    def test_parts_have_their_names_and_sizes_in_order(self, name):
        fused, sizes = fused_of(name)
        parts = {key: view for key, view in adapter_for(model_of(name)).parts().items() if key.startswith(f"{fused}[")}
        assert list(parts) == [f"{fused}[{part}]" for part in sizes]
        whole = adapter_for(model_of(name)).views()[fused]
        for view, d_out in zip(parts.values(), sizes.values(), strict=True):
            assert view.matrix_shape == (d_out, whole.matrix_shape[1])

    def test_every_fused_parameter_is_tiled_without_overlap(self, name):
        adapter = adapter_for(model_of(name))
        wholes = {key.rpartition("[")[0] for key in adapter.parts()}
        assert wholes >= {fused_of(name)[0]}
        for whole in wholes:
            views = [view for key, view in adapter.parts().items() if key.startswith(f"{whole}[")]
            assert torch.equal(sum(marked(view) for view in views), torch.ones_like(adapter.views()[whole].stored))

    def test_a_parts_values_are_those_of_its_place_in_order(self, name):
        for view in adapter_for(model_of(name)).parts().values():
            inside = marked(view).bool()
            found = torch.where(inside, view.layout.write(view.tensor, torch.zeros_like(view.stored)), view.stored)
            assert torch.equal(found, view.stored)

    def test_biases_are_split_as_weights_are(self, name):
        adapter = adapter_for(model_of(name))
        views, parts = adapter.views(), adapter.parts()
        biases = {key: parts.get(key.replace("weight", "bias")) for key in parts if "bias" not in key}
        for key, bias in biases.items():
            rows = views[key.rpartition("[")[0]].to_matrix(marked(parts[key]))[:, 0]
            assert bias is None or torch.equal(marked(bias), rows)


def changes(model, view, column, *, inputs):
    """At which positions the output changes with one column of the part: with what one position brings in."""
    delta = torch.zeros(view.matrix_shape, dtype=view.tensor.dtype)
    delta[:, column] = normal(len(delta))
    with torch.no_grad():
        before = output_on_unit_vectors(model, view, inputs)
        with ParamSubset((view,)).edited({view.name: view.from_matrix(delta)}):
            after = output_on_unit_vectors(model, view, inputs)
    return ((after - before).flatten(1).norm(dim=1) if after.dim() == 2 else (after - before)[0].norm(dim=-1)) > 1e-9


def output_on_unit_vectors(model, view, inputs):
    """The model's output where the fused layer's input at position t is the unit vector t."""
    units = torch.eye(view.matrix_shape[1], dtype=view.tensor.dtype)[None, :5]
    if isinstance(view.owner, nn.MultiheadAttention):
        return model(units)
    handle = view.owner.register_forward_pre_hook(lambda *_: (units,))
    try:
        return adapter_for(model).run(*inputs)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", [*FAMILIES, "attention"])
class TestQueriesKeysAndValues:
    """With the unit vector t as position t's input, column t of a matrix is what position t alone brings in.

    A position's query matters at that position only; its key and value at all that see it. The first position sees only
    itself, so its attention is 1 whatever its query and key are.
    """

    def positions(self, name, part, column):
        model, (fused, _) = model_of(name), fused_of(name)
        tokens = () if name in TORCH else (integers(D_VOCAB, 1, 5),)
        return changes(model, chosen(model, f"{fused}[{part}]").views[0], column, inputs=tokens).nonzero()[:, 0].tolist()

    def test_a_query_matters_at_its_own_position(self, name):
        assert self.positions(name, "q", 2) == [2]
        assert self.positions(name, "q", 0) == []

    def test_a_key_matters_where_it_is_seen_beside_others(self, name):
        assert self.positions(name, "k", 2) == [2, 3, 4]
        assert self.positions(name, "k", 0) == [1, 2, 3, 4]

    def test_a_value_matters_wherever_it_is_seen(self, name):
        assert self.positions(name, "v", 2) == [2, 3, 4]
        assert self.positions(name, "v", 0) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", GATED)
def test_the_up_part_enters_linearly_and_the_gate_part_does_not(name):
    model, (fused, _) = model_of(name), fused_of(name)
    mlp = model.get_submodule(fused.removesuffix(".gate_up_proj.weight"))
    x = normal(2, 3, 16)

    def bend(part):
        view = chosen(model, f"{fused}[{part}]").views[0]
        delta = normal(*view.shape)
        outputs = []
        for step in (-1, 0, 1):
            with torch.no_grad(), ParamSubset((view,)).edited({view.name: step * delta}):
                outputs.append(mlp(x))
        assert (outputs[2] - outputs[0]).norm() > 0.1
        return (outputs[0] + outputs[2] - 2 * outputs[1]).norm() / outputs[1].norm()

    assert bend("up") < 1e-12
    assert bend("gate") > 1e-2


def test_cross_attention_has_keys_and_values():
    """GPT-2's cross-attention takes its queries from elsewhere; values enter linearly, keys do not."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(**_SHORT, **_TOKENS, add_cross_attention=True)
    model = seeded(transformers.GPT2LMHeadModel, config)
    name = "transformer.h.0.crossattention.c_attn.weight"
    assert [key for key in adapter_for(model).parts() if key.startswith(name)] == [f"{name}[k]", f"{name}[v]"]
    attention = model.transformer.h[0].crossattention
    states, encoded = normal(2, 3, 16), normal(2, 4, 16)

    def bend(part):
        view = chosen(model, f"{name}[{part}]").views[0]
        delta, outputs = normal(*view.shape), []
        for step in (-1, 0, 1):
            with torch.no_grad(), ParamSubset((view,)).edited({view.name: step * delta}):
                outputs.append(attention(states, encoder_hidden_states=encoded)[0])
        return (outputs[0] + outputs[2] - 2 * outputs[1]).norm() / outputs[1].norm()

    assert bend("v") < 1e-12
    assert bend("k") > 1e-2


class TestGates:
    """The layers' own equations (torch's documentation), written with parts by name."""

    def parts(self, rnn):
        model = nn.ModuleDict({"rnn": rnn})
        found = {key.removeprefix("rnn."): view.tensor for key, view in adapter_for(model).parts().items()}

        def affine(gate, x, h):
            entry = x @ found[f"weight_ih_l0[{gate}]"].T + found[f"bias_ih_l0[{gate}]"]
            return entry, h @ found[f"weight_hh_l0[{gate}]"].T + found[f"bias_hh_l0[{gate}]"]

        return affine

    def test_lstm(self):
        rnn = seeded(lambda: nn.LSTM(3, 4, batch_first=True))
        affine, h, c = self.parts(rnn), torch.zeros(2, 4).double(), torch.zeros(2, 4).double()
        x, outputs = normal(2, 5, 3), []
        for step in range(5):
            i, f, g, o = (sum(affine(gate, x[:, step], h)) for gate in "ifgo")
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outputs.append(h)
        torch.testing.assert_close(rnn(x)[0], torch.stack(outputs, 1), rtol=1e-12, atol=1e-12)

    def test_gru(self):
        rnn = seeded(lambda: nn.GRU(3, 4, batch_first=True))
        affine, h = self.parts(rnn), torch.zeros(2, 4).double()
        x, outputs = normal(2, 5, 3), []
        for step in range(5):
            r, z = (torch.sigmoid(sum(affine(gate, x[:, step], h))) for gate in "rz")
            from_x, from_h = affine("n", x[:, step], h)
            h = (1 - z) * torch.tanh(from_x + r * from_h) + z * h
            outputs.append(h)
        torch.testing.assert_close(rnn(x)[0], torch.stack(outputs, 1), rtol=1e-12, atol=1e-12)


@cache
def bridge_of(name):
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge

    model = _transformer(EVERY[name], torch.float32)
    bridge = TransformerBridge.boot_transformers("any", hf_model=model, tokenizer=tokenizer(), device="cpu")
    return bridge.to(torch.float64).eval()


BRIDGED = [name for name in (*FAMILIES, *GATED) if EVERY[name].bridge]


@pytest.mark.parametrize("name", BRIDGED)
class TestAgainstTransformerLens:
    """Booting a bridge splits the fused matrix by TransformerLens' own code."""

    def test_matrices_and_fingerprints_are_equal(self, name):
        adapter = adapter_for(bridge_of(name))
        views, aliases = adapter.views(), adapter.aliases()
        for part, said in zip(EVERY[name].parts, EVERY[name].bridge, strict=True):
            ours = chosen(model_of(name), f"{EVERY[name].fused}[{part}]")
            theirs = ParamSubset((views[aliases.get(said, said)],))
            (view,), (other,) = ours.views, theirs.views
            assert torch.equal(view.to_matrix(view.tensor), other.to_matrix(other.tensor))
            assert list(ours.fingerprint().values()) == list(theirs.fingerprint().values())

    def test_transformer_lens_own_property_is_equal(self, name):
        for part, said in zip(EVERY[name].parts, EVERY[name].bridge, strict=True):
            path, _, attribute = said.rpartition(".")
            theirs = getattr(bridge_of(name).blocks[0].get_submodule(path.removeprefix("blocks.0.")), attribute)
            matrix = theirs.transpose(-1, -2).reshape(-1, 16)  # [head d_model d_head] or [d_model d_mlp]
            view = chosen(model_of(name), f"{EVERY[name].fused}[{part}]").views[0]
            assert torch.equal(view.to_matrix(view.tensor), matrix)

    def test_nothing_dead_is_listed(self, name):
        """Originals that booting split are read no more: features of them would be silent."""
        adapter = adapter_for(bridge_of(name))
        views = adapter.views()
        output = adapter.run(integers(D_VOCAB, 2, 6)).square().sum()
        found = torch.autograd.grad(output, [view.stored for view in views.values()], allow_unused=True)
        assert [key for key, gradient in zip(views, found, strict=True) if gradient is None] == []


def case_of_parts(name, params) -> Case:
    model = model_of(name)
    adapter, subset = adapter_for(model), chosen(model, params)
    given = inputs_of(name, 3)
    data = read_inputs(adapter, given.get("tokens"), given.get("inputs"))
    problem = problem_of(adapter, subset, data)
    cotangents = normal(len(data), *problem.output.shape[1:])
    return Case(model, plan_engine(problem), data, cotangents)


@pytest.mark.parametrize("name", EVERY)
class TestGradients:
    def test_gradients_of_the_parts_are_rows_of_the_wholes(self, name):
        fused, sizes = fused_of(name)
        whole = case_of_parts(name, fused).by_autograd()[fused]
        assert whole.norm() > 1e-3
        case = case_of_parts(name, f"{fused}[*]")
        assert list(case.engine.subset.names) == [f"{fused}[{part}]" for part in sizes]
        for route in (case, case.dense(is_vmapped=False)):
            found = route.gradients()[0]
            for view in case.engine.subset.views:
                inside = marked(view).bool()
                for mine, theirs in zip(found[view.name], whole, strict=True):
                    back = view.layout.write(mine, torch.zeros_like(view.stored))
                    assert not back[~inside].any()
                    assert (back - theirs * inside).norm() <= 1e-6 * theirs.norm() + 1e-13, view.name

    def test_parts_of_transformers_take_the_layers_own_rule(self, name):
        """Inside torch's attention and recurrent layers, those of the operations."""
        case = case_of_parts(name, f"{fused_of(name)[0]}[*]")
        assert case.engine.routes.why_dense == {}
        assert bool(case.engine.routes.watched) == (name in TORCH)

    def test_replacing_a_part_leaves_the_others(self, name):
        model, (fused, _) = model_of(name), fused_of(name)
        first, *others = chosen(model, f"{fused}[*]").views
        old = [view.tensor.clone() for view in others]
        with ParamSubset((first,)).replaced({first.name: torch.full_like(first.tensor, 7.0)}):
            assert (first.tensor == 7).all()
            assert all(torch.equal(view.tensor, was) for view, was in zip(others, old, strict=True))

    def test_all_parts_replaced_together_are_the_whole(self, name):
        model, (fused, _) = model_of(name), fused_of(name)
        parts, whole = chosen(model, f"{fused}[*]"), chosen(model, fused).views[0]
        doubled = 2 * whole.tensor
        with parts.replaced({view.name: 2 * view.tensor for view in parts.views}):
            assert torch.equal(whole.tensor, doubled)
        with parts.edited({view.name: view.tensor.detach().clone() for view in parts.views}):
            assert torch.equal(whole.tensor, doubled)


class TestChoosing:
    @pytest.mark.parametrize(
        ("params", "expected"),
        [
            ("transformer.h.0.attn.c_attn.weight[k]", ["0.attn.c_attn.weight[k]"]),
            ("transformer.h.1.attn.c_attn.weight[q|k]", ["1.attn.c_attn.weight[q]", "1.attn.c_attn.weight[k]"]),
            ("transformer.h.1.attn.c_attn.bias[*]", [f"1.attn.c_attn.bias[{part}]" for part in "qkv"]),
            ("transformer.h.*.attn.c_attn.weight[k]", [f"{layer}.attn.c_attn.weight[k]" for layer in (0, 1)]),
            ("*.c_attn.*[v]", [f"{layer}.attn.c_attn.{key}[v]" for layer in (0, 1) for key in ("weight", "bias")]),
            ("transformer.h.0.attn.c_attn.*", ["0.attn.c_attn.weight", "0.attn.c_attn.bias"]),
            (
                ["transformer.h.0.attn.c_attn.weight[v]", "transformer.h.0.attn.c_attn.weight[q]", "*.0.ln_1.bias"],
                ["0.ln_1.bias", "0.attn.c_attn.weight[q]", "0.attn.c_attn.weight[v]"],
            ),
        ],
        ids=str,
    )
    def test_it_takes_what_it_says(self, params, expected):
        assert chosen(self.model, params).names == tuple(f"transformer.h.{name}" for name in expected)

    def test_everything_is_chosen_whole(self):
        assert not any("[" in name for name in chosen(self.model, "*").names)

    @pytest.mark.parametrize("params", ["*.c_attn.weight[x]", "*.c_attn.weight[q|]x", "*.c_proj.weight[q]", "*.[k]"])
    def test_a_part_that_is_not_there_is_refused(self, params):
        with pytest.raises(UnknownParameterError, match="No parameter matches"):
            chosen(self.model, params)

    @pytest.mark.parametrize("params", [["{}", "{}[k]"], ["{}[*]", "*"]])
    def test_whole_and_part_together_are_refused(self, params):
        fused = "transformer.h.0.attn.c_attn.weight"
        with pytest.raises(SettingError, match=r"c_attn\.weight' whole and its part '.*c_attn\.weight\[.\]' again"):
            chosen(self.model, [one.format(fused) for one in params])

    def test_decompose_takes_parts_and_names_them(self):
        params = ["transformer.h.0.attn.c_attn.weight[q|k]"]
        call = {"n_features": 3, "l0": 1, "steps": 5, "n_samples": 60, "progress": False}
        features = pf.decompose(self.model, params, integers(D_VOCAB, 24, 6), **call)
        assert list(features.params) == [f"transformer.h.0.attn.c_attn.weight[{part}]" for part in "qk"]
        shapes = {name: tuple(tensor.shape) for name, tensor in features.direction(0).items()}
        assert set(shapes.values()) == {(16, 16)}

    def test_list_params_prints_parts(self):
        listed = {row.name: row.parts for row in pf.list_params(self.model)}
        assert listed["transformer.h.0.attn.c_attn.weight"] == ("q", "k", "v")
        assert listed["transformer.h.0.mlp.c_fc.weight"] == ()

    @pytest.fixture(autouse=True)
    def _model(self):
        transformers = pytest.importorskip("transformers")
        self.model = seeded(transformers.GPT2LMHeadModel, transformers.GPT2Config(**_SHORT | {"n_layer": 2}, **_TOKENS))
