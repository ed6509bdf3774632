"""The table against the scores of the models' own attention, with single features in place of W_Q and W_K."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from param_features.adapters import adapter_for
from torch import nn

import param_features as pf
from param_features.circuits import Attention, Rotary
from param_features.circuits.singular import Components, singular_components, turned_at_random
from param_features.errors import AdapterError, FeatureMismatchError, SettingError, UnknownParameterError
from param_features.params import ParamSubset
from tests.adapters import zoo
from tests.models import hooked_transformer

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")
DISTANCES = (0, 1, 2, 4)
N_POSITIONS = 5
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 8}
HOOKED = {
    "standard": {},
    "no scale": {"use_attn_scale": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True, "attn_scale": 2.5},
    "halves": ROTARY | {"rotary_adjacent_pairs": False},
    "adjacent": ROTARY | {"rotary_adjacent_pairs": True},
    "adjacent, part of a head": ROTARY | {"rotary_adjacent_pairs": True, "rotary_dim": 4},
    "halves, part of a head, other base": ROTARY | {"rotary_dim": 4, "rotary_base": 50},
    "grouped keys": {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4},
    "grouped keys that turn": ROTARY | {"n_heads": 4, "n_key_value_heads": 2, "d_head": 4, "rotary_dim": 4},
    "yarn": ROTARY
    | {"use_yarn_rope": True, "yarn_factor": 4.0, "yarn_attention_factor": 1.3, "yarn_original_max_position_embeddings": 4},
}


def tokens_for(model):
    return torch.randint(20, (20, 8), generator=torch.Generator().manual_seed(1))


def fitted(model, params, *, rank=1, n_features=3, seed=0):
    """A fit in double precision, short: the table does not ask what the features mean."""
    fit = pf.FitSettings(steps=2, batch_size=16, selection="l1")
    call = {"n_features": n_features, "rank": rank, "l0": 1, "fit": fit, "n_samples": 64, "progress": False, "seed": seed}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        found = pf.decompose(model, params, tokens_for(model), **call)
    return replace(found, v_out=found.v_out.map(torch.Tensor.double))


def both(model, query, key, **settings):
    return fitted(model, query, **settings), fitted(model, key, seed=1, **settings)


@pytest.fixture(scope="module")
def grouped():
    """Fits of W_Q and W_K of rank 2, four heads on two, with rotation."""
    model = hooked_transformer(**HOOKED["grouped keys that turn"])
    return model, *both(model, "blocks.1.attn.W_Q", "blocks.1.attn.W_K", rank=2)


def bilinear_forms(attention, query, key):
    """The layer's own scores for every pair of basis vectors, [a b head query_pos key_pos], and -inf where it masks."""
    attention, scores = copy.deepcopy(attention), []
    d_model = query.shape[1]
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            if "b_" in name:
                parameter.zero_()
        attention.W_Q.copy_(query)
        getattr(attention, "_W_K" if "_W_K" in attention._parameters else "W_K").copy_(key)
        attention.hook_attn_scores.add_hook(lambda value, hook: scores.append(value.clone()))
        basis = torch.eye(d_model, dtype=torch.float64)
        x = basis[:, None, None].expand(d_model, d_model, N_POSITIONS, d_model).flatten(0, 1)
        y = basis[None, :, None].expand(d_model, d_model, N_POSITIONS, d_model).flatten(0, 1)
        attention(query_input=x, key_input=y, value_input=y)
    return scores[0].unflatten(0, (d_model, d_model))


def assert_like_the_layers_own(table, attention, features_q, features_k, names):
    """Every pair, head and pair of positions."""
    for i in range(features_q.n_features):
        for j in range(features_k.n_features):
            query, key = features_q.direction(i)[names[0]], features_k.direction(j)[names[1]]
            forms = bilinear_forms(attention, query, key)
            for late in range(N_POSITIONS):
                for early in range(late + 1):
                    place = table.distance_place(late - early) if late - early in DISTANCES else None
                    if place is None:
                        continue
                    form = forms[..., late, early]
                    norm = form.flatten(0, 1).norm(dim=0)
                    torch.testing.assert_close(table.norm[i, j, :, place], norm, rtol=0, atol=1e-8)
                    score = torch.einsum("a,b,abh->h", table.query_readings[i], table.key_readings[j], form)
                    torch.testing.assert_close(table.score[i, j, :, place], score, rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", HOOKED)
@pytest.mark.parametrize("rank", [1, 2])
def test_scores_are_those_of_the_hooked_layer(kind, rank):
    model = hooked_transformer(**HOOKED[kind])
    features = both(model, "blocks.1.attn.W_Q", "blocks.1.attn.W_K", rank=rank)
    table = pf.query_key(*features, distances=DISTANCES)
    assert table.distances == (DISTANCES if "positional_embedding_type" in HOOKED[kind] else (0,))
    assert float(table.norm.max()) > 1e-3
    names = [next(iter(side.params)) for side in features]
    assert_like_the_layers_own(table, model.blocks[1].attn, *features, names)


def test_one_set_may_hold_both_matrices():
    model = hooked_transformer(**HOOKED["halves"])
    names = ["blocks.0.attn.W_Q", "blocks.0.attn.W_K"]
    features = fitted(model, [*names, "blocks.1.attn.W_Q"])
    table = pf.query_key(features, distances=DISTANCES)
    assert table.layer == "blocks.0.attn"
    assert_like_the_layers_own(table, model.blocks[0].attn, features, features, names)
    shares = [
        torch.stack([features.direction(k)[name].square().sum((1, 2)) for k in range(3)]).double() for name in names
    ]
    torch.testing.assert_close(table.query_heads, shares[0])
    torch.testing.assert_close(table.key_heads, shares[1])


def test_readings_are_leading_singular_vectors(grouped):
    _, features_q, features_k = grouped
    table = pf.query_key(features_q, features_k)
    for k in range(3):
        matrix = features_k.direction(k)["blocks.1.attn._W_K"].movedim(1, 2).flatten(0, 1)
        _, sigma, b = torch.linalg.svd(matrix)
        assert float((table.key_readings[k] @ b[0]).abs()) == pytest.approx(1, abs=1e-10)
        assert float(table.key_readings[k][table.key_readings[k].abs().argmax()]) > 0
        assert float(table.key_leading[k]) == pytest.approx(float(sigma[0] ** 2 / sigma.square().sum()), abs=1e-10)
    torch.testing.assert_close(table.query_heads.sum(1), torch.ones(3, dtype=torch.float64))
    assert table.query_heads.shape == (3, 4)
    assert table.key_heads.shape == (3, 2)


def test_signs_do_not_depend_on_how_factors_share_them(grouped):
    _, features_q, features_k = grouped
    turned = replace(features_q, v_out=features_q.v_out.map(torch.neg))
    one, two = (pf.query_key(side, features_k) for side in (features_q, turned))
    torch.testing.assert_close(one.score, two.score)


def run_with(model, adapter, layer, replaced, x):
    """Run the model with other matrices and `x` in place of what the layer reads."""

    def read(module, args, kwargs):
        return ((x, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": x})

    handle = layer.register_forward_pre_hook(read, with_kwargs=True)
    views = adapter.views() | adapter.parts()
    try:
        with torch.no_grad(), ParamSubset(tuple(views[name] for name in replaced)).replaced(replaced):
            return model(torch.ones(1, x.shape[1], dtype=torch.long), use_cache=False, output_attentions=True)
    finally:
        handle.remove()


def in_double(model):
    """Biases zero, and rotation angles in the precision of the model; transformers takes them in single."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    for module in model.modules():
        if "inv_freq" in module._buffers:
            module.forward = lambda x, position_ids, m=module: tuple(
                m.attention_scaling * function(torch.cat([position_ids[..., None].double() * m.inv_freq] * 2, -1))
                for function in (torch.cos, torch.sin)
            )
    return model


def built(name, **changes):
    import transformers

    common = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16, "vocab_size": 20,
        "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**common | changes)
    cls = getattr(transformers, f"{name}LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")
    return in_double(zoo.seeded(cls, config))


GROUPED = {"num_key_value_heads": 2}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 8}
HUGGING_FACE = {
    "llama": lambda: built("Llama", **GROUPED),
    "llama yarn": lambda: built("Llama", rope_parameters=YARN),
    "mistral": lambda: built("Mistral", **GROUPED),
    "mixtral": lambda: built("Mixtral", num_local_experts=2, **GROUPED),
    "qwen2": lambda: built("Qwen2", **GROUPED),
    "gemma": lambda: built("Gemma", head_dim=8, **GROUPED),
    "phi": lambda: built("Phi", rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    "phi3": lambda: built("Phi3", **GROUPED),
    "gpt-neox": lambda: built("GPTNeoX", rotary_pct=0.5),
    "gpt2": lambda: in_double(zoo.hf_gpt2()),
    "gpt2 scaled by layer": lambda: in_double(zoo.hf_gpt2(scale_attn_by_inverse_layer_idx=True)),
    "opt": lambda: built("OPT", ffn_dim=16, word_embed_proj_dim=32),
}


def rank_one_table(model, layer=1):
    """The table of three features of either matrix of a layer, with the dense matrices."""
    adapter = adapter_for(model)
    name, attention = list(adapter.attentions().items())[layer]
    features = both(model, attention.query, attention.key)
    table = pf.query_key(*features, distances=range(N_POSITIONS))
    assert table.layer == name
    matrices = [
        [side.direction(k)[which] for k in range(3)]
        for side, which in zip(features, (attention.query, attention.key), strict=True)
    ]
    return adapter, table, matrices


def expected(table, i, j, x):
    """Scores [head query_pos key_pos] that the table says, and which are those of keys that are not later."""
    readings = torch.einsum("q,k->qk", x[0] @ table.query_readings[i].double(), x[0] @ table.key_readings[j].double())
    late, early = torch.tril_indices(len(readings), len(readings))
    distance = late - early if table.attention.rotary is not None else torch.zeros_like(late)
    return table.score[i, j][:, distance] * readings[late, early], late, early


def inputs_like(d_model):
    return torch.randn(1, N_POSITIONS, d_model, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_scores_are_those_of_transformers(kind):
    pytest.importorskip("transformers")
    model = HUGGING_FACE[kind]()
    adapter, table, (queries, keys) = rank_one_table(model)
    layer, x = model.get_submodule(table.layer), inputs_like(model.config.hidden_size)
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            replaced = {table.attention.query: query, table.attention.key: key}
            found = scores_of_layer(model, adapter, layer, replaced, x)
            said, late, early = expected(table, i, j, x)
            torch.testing.assert_close(said, found[:, late, early], rtol=0, atol=1e-8)
            assert float(said.abs().max()) > 1e-6


def scores_of_layer(model, adapter, layer, replaced, x):
    """q · k · scale of every head as the layer hands them to transformers' attention function."""
    from transformers import AttentionInterface

    found = {}

    def probe(module, query, key, value, mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        found[module] = (query @ key.repeat_interleave(groups, 1).mT * scale)[0]
        return value.repeat_interleave(groups, 1).transpose(1, 2), None

    AttentionInterface.register("probe", probe)
    model.config._attn_implementation = "probe"
    run_with(model, adapter, layer, replaced, x)
    return found[layer]
