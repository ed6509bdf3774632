"""The table against the scores of the models' own attention, with single features in place of W_Q and W_K."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.circuits.singular import Components, singular_components, turned_at_random
from param_features.errors import AdapterError, FeatureMismatchError, SettingError, UnknownParameterError
from param_features.params import Attention, ParamSubset, Rotary, adapter_for
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


def fitted(model, params, *, rank=1, n_features=2, seed=0):
    """A fit in double precision, short: the table does not ask what the features mean."""
    fit = pf.FitSettings(steps=2, batch_size=16, selection="l1", rank=rank)
    call = {"n_features": n_features, "l0": 1, "fit": fit, "n_samples": 64, "progress": False, "seed": seed}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning)
        found = pf.decompose(model, params, tokens_for(model), **call)
    return found.with_directions(found.v_out.map(torch.Tensor.double), found.v_in)


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


@pytest.mark.parametrize(("kind", "rank"), [("halves", 1), *((kind, 2) for kind in HOOKED)])
def test_scores_are_those_of_the_hooked_layer(kind, rank):
    model = hooked_transformer(**HOOKED[kind])
    features = both(model, "blocks.1.attn.W_Q", "blocks.1.attn.W_K", rank=rank)
    table = pf.circuits.query_key(*features, distances=DISTANCES)
    assert table.distances == (DISTANCES if "positional_embedding_type" in HOOKED[kind] else (0,))
    assert float(table.norm.max()) > 1e-3
    names = [next(iter(side.params)) for side in features]
    assert_like_the_layers_own(table, model.blocks[1].attn, *features, names)


def test_one_set_may_hold_both_matrices():
    model = hooked_transformer(**HOOKED["halves"])
    names = ["blocks.0.attn.W_Q", "blocks.0.attn.W_K"]
    features = fitted(model, [*names, "blocks.1.attn.W_Q"])
    table = pf.circuits.query_key(features, distances=DISTANCES)
    assert table.layer == "blocks.0.attn"
    assert_like_the_layers_own(table, model.blocks[0].attn, features, features, names)
    shares = [torch.stack([features.direction(k)[name].square().sum((1, 2)) for k in range(2)]).double() for name in names]
    torch.testing.assert_close(table.query_heads, shares[0])
    torch.testing.assert_close(table.key_heads, shares[1])


def test_readings_are_leading_singular_vectors(grouped):
    _, features_q, features_k = grouped
    table = pf.circuits.query_key(features_q, features_k)
    for k in range(2):
        matrix = features_k.direction(k)["blocks.1.attn._W_K"].movedim(1, 2).flatten(0, 1)
        _, sigma, b = torch.linalg.svd(matrix)
        assert float((table.key_readings[k] @ b[0]).abs()) == pytest.approx(1, abs=1e-10)
        assert float(table.key_readings[k][table.key_readings[k].abs().argmax()]) > 0
        assert float(table.key_leading[k]) == pytest.approx(float(sigma[0] ** 2 / sigma.square().sum()), abs=1e-10)
    torch.testing.assert_close(table.query_heads.sum(1), torch.ones(2, dtype=torch.float64))
    assert table.query_heads.shape == (2, 4)
    assert table.key_heads.shape == (2, 2)


def test_signs_do_not_depend_on_how_factors_share_them(grouped):
    _, features_q, features_k = grouped
    turned = features_q.with_directions(features_q.v_out.map(torch.neg), features_q.v_in)
    one, two = (pf.circuits.query_key(side, features_k) for side in (features_q, turned))
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
    "mixtral": lambda: built("Mixtral", num_local_experts=2, experts_implementation="eager", **GROUPED),
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
    table = pf.circuits.query_key(*features, distances=range(N_POSITIONS))
    assert table.layer == name
    matrices = [
        [side.direction(k)[which] for k in range(2)]
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


def patterns_like(said):
    """What softmax makes of scores, [head query_pos key_pos] by causal pairs, as logarithms relative to the query itself."""
    n = N_POSITIONS
    full = torch.zeros(len(said), n, n, dtype=said.dtype)
    late, early = torch.tril_indices(n, n)
    full[:, late, early] = said
    return full - full.diagonal(dim1=1, dim2=2).unsqueeze(2)


def assert_log_pattern(pattern, said, *, atol):
    """`pattern` [head query key] is the softmax of the scores that the table says."""
    late, early = torch.tril_indices(N_POSITIONS, N_POSITIONS)
    logs = pattern.double().log()
    logs = logs - logs.diagonal(dim1=1, dim2=2).unsqueeze(2)
    torch.testing.assert_close(patterns_like(said)[:, late, early], logs[:, late, early], rtol=0, atol=atol)


WITH_OWN_SOFTMAX = {  # which they take in single precision
    "gpt-neo": lambda: in_double(zoo.hf_gpt_neo()),
    "gpt-j": lambda: built("GPTJ", rotary_dim=4),
}


@pytest.mark.parametrize("kind", WITH_OWN_SOFTMAX)
def test_patterns_are_those_of_transformers(kind):
    pytest.importorskip("transformers")
    model = WITH_OWN_SOFTMAX[kind]()
    adapter, table, (queries, keys) = rank_one_table(model, layer=0)
    layer, x = model.get_submodule(table.layer), 10 * inputs_like(model.config.hidden_size)
    for i, query in enumerate(queries):
        replaced = {table.attention.query: query, table.attention.key: keys[0]}
        out = run_with(model, adapter, layer, replaced, x)
        said = expected(table, i, 0, x)[0]
        assert float(said.abs().max()) > 0.1
        assert_log_pattern(out.attentions[0][0], said, atol=1e-5)


class Attending(nn.Module):
    """A language model around torch's own attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.attend = nn.MultiheadAttention(16, 4, batch_first=True)
        self.lm_head = nn.Linear(16, 20)

    def forward(self, tokens):
        x = self.embed(tokens)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.lm_head(x + self.attend(x, x, x, attn_mask=mask, need_weights=False)[0])


def test_patterns_are_those_of_torch():
    model = zoo.seeded(Attending)
    features = both(model, "attend.in_proj_weight[q]", "attend.in_proj_weight[k]")
    table = pf.circuits.query_key(*features)
    x, layer = inputs_like(16), copy.deepcopy(model.attend)
    with torch.no_grad():
        layer.in_proj_bias.zero_()
        parts = [side.direction(0)[f"attend.in_proj_weight[{part}]"] for side, part in zip(features, "qk", strict=True)]
        layer.in_proj_weight.copy_(torch.cat([*parts, torch.zeros(16, 16)]))
        mask = torch.ones(N_POSITIONS, N_POSITIONS, dtype=torch.bool).triu(1)
        pattern = layer(x, x, x, attn_mask=mask, average_attn_weights=False)[1][0]
    assert_log_pattern(pattern, expected(table, 0, 0, x)[0], atol=1e-8)


def exact_native(**settings):
    """A bridge without another library's model, its table of angles in double precision."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    common = {
        "d_model": 16,
        "d_head": 8,
        "n_layers": 2,
        "n_ctx": 12,
        "n_heads": 2,
        "d_mlp": 24,
        "act_fn": "gelu",
        "d_vocab": 20,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bridge = TransformerBridge.boot_native(TransformerBridgeConfig(**common | settings)).to(torch.float64).eval()
    rotary = bridge.blocks[0].attn.original_component.rotary
    if rotary is not None:
        frequencies = 10000 ** -(torch.arange(0, rotary.rotary_dim, 2, dtype=torch.float64) / rotary.rotary_dim)
        angles = torch.outer(torch.arange(12, dtype=torch.float64), frequencies).repeat_interleave(2, 1)
        rotary.cos_cached, rotary.sin_cached = angles.cos(), angles.sin()
    return bridge


def exact_bridge(build):
    return in_double(zoo.booted(build))


BRIDGES = {
    "llama": (lambda: exact_bridge(zoo.hf_llama), 1e-8),
    "gpt2": (lambda: exact_bridge(zoo.hf_gpt2), 1e-8),
    "gpt-neo": (lambda: exact_bridge(zoo.hf_gpt_neo), 1e-5),
    "native": (lambda: exact_native(), 1e-8),
    "native that turns": (
        lambda: exact_native(n_heads=4, n_key_value_heads=2, positional_embedding_type="rotary", rotary_dim=4),
        1e-8,
    ),
}


@pytest.mark.parametrize("kind", BRIDGES)
def test_patterns_are_those_of_a_bridge(kind):
    pytest.importorskip("transformer_lens")
    build, tolerance = BRIDGES[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    adapter, table, (queries, keys) = rank_one_table(model, layer=0)
    assert table.layer == "blocks.0.attn"
    x = 3 * inputs_like(16)
    for module in model.modules():  # biases
        for name, parameter in module._parameters.items():
            if name == "bias" and parameter is not None:
                nn.init.zeros_(parameter)
    found, views = {}, adapter.views()
    replaced = {table.attention.query: queries[0], table.attention.key: keys[0]}
    hooks = [(f"blocks.0.attn.{letter}.hook_in", lambda value, hook: x.to(value)) for letter in "qk"]
    hooks.append(("blocks.0.attn.hook_pattern", lambda value, hook: found.setdefault("pattern", value.clone())))
    hooks.append(("blocks.0.attn.hook_attn_scores", lambda value, hook: found.setdefault("scores", value.clone())))
    with torch.no_grad(), ParamSubset(tuple(views[name] for name in replaced)).replaced(replaced):
        model.run_with_hooks(torch.ones(1, N_POSITIONS, dtype=torch.long), fwd_hooks=hooks)
    said, late, early = expected(table, 0, 0, x)
    if kind in ("llama", "gpt2"):
        torch.testing.assert_close(said, found["scores"][0][:, late, early].double(), rtol=0, atol=tolerance)
    else:
        assert_log_pattern(found["pattern"][0], said, atol=tolerance)


def test_pairs_are_the_strongest_each_once(grouped):
    _, features_q, features_k = grouped
    table = pf.circuits.query_key(features_q, features_k, distances=DISTANCES)
    cells = [
        (float(table.norm[i, j, h, place]), i, j, h, distance)
        for i in range(2) for j in range(2) for h in range(4) for place, distance in enumerate(DISTANCES)
    ]  # fmt: skip
    best = {}
    for norm, i, j, h, distance in sorted(cells, reverse=True):
        best.setdefault((i, j), (i, j, h, distance, norm))
    found = table.top(3)
    assert [(*pair[:4], pair.norm) for pair in found] == list(best.values())[:3]
    for pair in found:
        assert pair.score == float(table.score[pair.query, pair.key, pair.head, DISTANCES.index(pair.distance)])
    assert len(table.top(99)) == 4
    (only,) = table.top(1, head=2, distance=4)
    assert (only.head, only.distance) == (2, 4)
    assert only.norm == float(table.norm[:, :, 2, 3].max())


def test_the_control_keeps_everything_but_where_heads_write(grouped):
    _, features_q, features_k = grouped
    table = pf.circuits.query_key(features_q, features_k, seed=3)
    control = table.control
    for name in ("query_heads", "key_heads", "query_leading", "key_leading", "query_readings"):
        torch.testing.assert_close(getattr(control, name), getattr(table, name))
    assert control.control is None
    assert float((control.score - table.score).abs().max()) > 0.01 * float(table.score.abs().max())
    again, other = (pf.circuits.query_key(features_q, features_k, seed=seed).control for seed in (3, 4))
    assert torch.equal(again.score, control.score)
    assert not torch.equal(other.score, control.score)


def test_random_turns_are_uniform_and_leave_lengths_alone():
    """Of features that are all alike: what is drawn must not lean to one side."""
    generator = torch.Generator().manual_seed(0)
    writes = torch.randn(2, 4, 2, generator=generator, dtype=torch.float64).expand(2000, 2, 4, 2)
    found = turned_at_random(Components(writes, writes[:, 0]), generator).writes
    gram = torch.einsum("f h d r, f h d s -> f h r s", writes, writes)
    torch.testing.assert_close(torch.einsum("f h d r, f h d s -> f h r s", found, found), gram)
    unit = found[..., 0] / found[..., 0].norm(dim=2, keepdim=True)
    assert float(unit.mean(0).abs().max()) < 4 * 0.5 / 2000**0.5  # each coordinate has variance 1/4
    moment = torch.einsum("f h d, f h e -> h d e", unit, unit) / 2000
    assert float((moment - torch.eye(4) / 4).abs().max()) < 0.03


def test_components_rebuild_the_features():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(3, d, 5, generator=generator, dtype=torch.float64) for d in (6, 4))
    readings, writes = singular_components(left, right)
    torch.testing.assert_close(writes @ readings.mT, left @ right.mT)
    torch.testing.assert_close(readings.mT @ readings, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))
    assert bool((writes.norm(dim=1).diff(dim=1) <= 1e-12).all())


def test_scores_of_random_directions_are_as_large_as_chance_says(grouped):
    """A product of two random unit vectors in d_head dimensions has variance 1 / d_head; so with shares of heads."""
    _, features_q, features_k = grouped
    attention = pf.circuits.query_key(features_q, features_k).attention
    squares = [
        pf.circuits.query_key(features_q, features_k, distances=[3], seed=seed).control.norm.square() for seed in range(300)
    ]
    table = pf.circuits.query_key(features_q, features_k)
    shares = torch.einsum("i h, j h -> i j h", table.query_heads, table.key_heads.repeat_interleave(2, 1))
    ratio = torch.stack(squares).mean(0)[..., 0] / (shares / 4 / attention.scale**2)
    assert float((ratio - 1).abs().max()) < 0.35
    assert float((ratio.mean() - 1).abs()) < 0.1


def test_what_is_said_by_hand_is_what_the_adapter_says(grouped):
    _, features_q, features_k = grouped
    known = pf.circuits.query_key(features_q, features_k)
    loaded = [replace(side, engine=None) for side in (features_q, features_k)]
    by_hand = Attention(
        "blocks.1.attn.W_Q", "blocks.1.attn._W_K", n_heads=4, scale=2.0, n_key_heads=2, rotary=Rotary.of_base(4)
    )
    table = pf.circuits.query_key(*loaded, attention=by_hand)
    torch.testing.assert_close(table.score, known.score, rtol=0, atol=1e-12)
    with pytest.raises(AdapterError, match="loaded without a model, so heads, scale and rotation are not known"):
        pf.circuits.query_key(*loaded)
    with pytest.raises(UnknownParameterError, match=r"'W_Q' was not decomposed. Parameters here: blocks.1.attn.W_Q"):
        pf.circuits.query_key(*loaded, attention=replace(by_hand, query="W_Q"))
    with pytest.raises(SettingError, match="has 16 outputs, which 5 heads do not divide"):
        pf.circuits.query_key(*loaded, attention=replace(by_hand, n_heads=5, n_key_heads=None))
    with pytest.raises(SettingError, match="n_heads=4 and n_key_heads=3. Every key head serves the same number"):
        pf.circuits.query_key(*loaded, attention=replace(by_hand, n_key_heads=3))
    with pytest.raises(SettingError, match="3 frequencies turn 6 coordinates, and a head has 4"):
        pf.circuits.query_key(*loaded, attention=replace(by_hand, rotary=Rotary.of_base(6)))
    with pytest.raises(SettingError, match="rotary_dim=3. Pairs of coordinates turn"):
        Rotary.of_base(3)


def test_wrong_questions_are_refused(grouped, tiny_features):
    _, features_q, features_k = grouped
    with pytest.raises(UnknownParameterError, match=r"query matrix must be in the first set .* 'blocks.0.attn.W_Q' and"):
        pf.circuits.query_key(features_k, features_q)
    with pytest.raises(FeatureMismatchError, match="two sets are of different models"):
        pf.circuits.query_key(features_q, tiny_features)
    for wrong in ((), (1, True)):
        with pytest.raises(SettingError, match="Give whole numbers, such as"):
            pf.circuits.query_key(features_q, features_k, distances=wrong)
    table = pf.circuits.query_key(features_q, features_k, distances=(1, 1, 3))
    assert table.distances == (1, 3)
    with pytest.raises(SettingError, match="distance=2 is not in the table. It holds 1, 3"):
        table.top(distance=2)
    with pytest.raises(SettingError, match="no head 4. Query heads are numbered 0 to 3"):
        table.top(head=4)


def test_several_layers_need_one_to_be_named():
    model = hooked_transformer()
    features = fitted(model, "blocks.*.attn.W_[QK]")
    with pytest.raises(SettingError, match=r"layer=None. The features share 'blocks.0.attn', 'blocks.1.attn'"):
        pf.circuits.query_key(features)
    assert (
        pf.circuits.query_key(features, layer=1).layer
        == pf.circuits.query_key(features, layer="blocks.1.attn").layer
        == "blocks.1.attn"
    )
    with pytest.raises(SettingError, match="layer=2. The features share"):
        pf.circuits.query_key(features, layer=2)


def test_layers_that_norm_queries_are_not_known():
    model = hooked_transformer(use_qk_norm=True)
    features = fitted(model, "blocks.0.attn.W_[QK]")
    with pytest.raises(
        AdapterError, match=r"HookedTransformer makes its attention scores is not known.*attention=pf.circuits"
    ):
        pf.circuits.query_key(features)


def test_plain_modules_are_asked_about():
    model = zoo.seeded(zoo.Language)
    features = fitted(model, "mix.weight")
    with pytest.raises(AdapterError, match="Language makes its attention scores is not known"):
        pf.circuits.query_key(features)


def test_it_prints_sizes_beside_the_controls(grouped):
    _, features_q, features_k = grouped
    lines = repr(pf.circuits.query_key(features_q, features_k, distances=DISTANCES)).splitlines()
    assert lines[0] == "QueryKey: 2 query × 2 key features of blocks.1.attn, 4 heads on 2 key heads, distances 0 1 2 4"
    assert [line.split()[0] for line in lines[1:5]] == ["norm", "features", "random", "query"]
    assert len(lines) == 9


@pytest.mark.real
def test_scores_are_those_of_the_real_model(stories):
    model = stories.load_hooked().double()
    for block in model.blocks:  # its table of angles is in single precision
        angles = block.attn.calculate_sin_cos_rotary(8, 16, base=10000, dtype=torch.float64)
        block.attn.rotary_sin, block.attn.rotary_cos = angles
    features = both(model, "blocks.2.attn.W_Q", "blocks.2.attn.W_K", rank=2)
    table = pf.circuits.query_key(*features, distances=DISTANCES)
    assert table.score.shape == (2, 2, 8, 4)
    assert table.key_heads.shape == (2, 4)
    names = ("blocks.2.attn.W_Q", "blocks.2.attn._W_K")
    assert_like_the_layers_own(table, model.blocks[2].attn, *features, names)
