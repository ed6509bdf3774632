"""Adapters on disk: what peft loads gives the logits of the moved weights, and what it cannot hold is refused."""

import json
import os
import sys

import pytest
import torch
from safetensors import safe_open
from torch import nn

import param_features as pf
from param_features.errors import (
    ExportError,
    FeatureCountError,
    FingerprintError,
    MissingExtraError,
    NotBoundError,
    SettingError,
    StoreError,
)
from param_features.intervene import folder, lora
from tests.adapters.zoo import (
    D_VOCAB,
    Language,
    assert_same,
    booted,
    hf_gpt2,
    hf_llama,
    hooked_gpt2,
    hooked_llama,
    seeded,
    shared,
    snapshot,
    wrapped_by_nnsight,
)
from tests.models import Between, Recurrent, normal

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated"),
]
STEPS = {0: 0.7, 2: -1.3}
GPT2 = "transformer.h.{}.{}"
LLAMA = "model.layers.{}.{}"


def tokens(n_rows=30):
    return torch.randint(D_VOCAB, (n_rows, 8), generator=torch.Generator().manual_seed(1))


def fitted(model, params, *, rank=1, **data):
    call = {"n_features": 4, "l0": 2, "fit": pf.FitSettings(steps=3, rank=rank), "n_samples": 60, "progress": False}
    return pf.decompose(model, params, **(data or {"tokens": tokens()}), **call)


def moved_output(features, inputs, steps=STEPS):
    """The oracle: Σ δ_k v_k from dense directions, written into the weights for a while."""
    subset, adapter = features.engine.subset, features.engine.adapter
    exact = features.v_out.map(torch.Tensor.double).materialize()
    deltas = {name: sum(step * rows[k] for k, step in steps.items()) for name, rows in exact.items()}
    deltas = {name: subset[name].from_matrix(delta) for name, delta in deltas.items()}
    with torch.no_grad():
        before = adapter.run(inputs)
        with subset.edited(deltas):
            return before, adapter.run(inputs)


def loaded_output(model, folder, inputs):
    """What peft makes of the folder."""
    import peft

    wrapped = peft.PeftModel.from_pretrained(model, folder)
    with torch.no_grad():
        output = wrapped(inputs)
    return getattr(output, "logits", output)


def check_equal(features, folder, target, inputs, tolerance=2e-6):
    before, wanted = moved_output(features, inputs)
    found = loaded_output(target, folder, inputs)
    assert (wanted - before).abs().max() > 0.1, "the step does nothing: the test would pass without an adapter"
    torch.testing.assert_close(found, wanted, atol=tolerance, rtol=0)


CASES = {
    "one part of a fused Conv1D": (hf_gpt2, [GPT2.format(0, "attn.c_attn.weight[k]")]),
    "two parts of one layer and its bias": (
        hf_gpt2,
        [GPT2.format(0, f"attn.c_attn.{part}") for part in ("weight[q]", "weight[v]", "bias[q]")],
    ),
    "several layers": (hf_gpt2, [GPT2.format(0, "attn.c_attn.weight"), GPT2.format(1, "mlp.c_proj.weight")]),
    "biases alone": (hf_gpt2, [GPT2.format(1, "attn.c_proj.bias"), GPT2.format(1, "mlp.c_fc.bias")]),
    "learned positions": (hf_gpt2, ["transformer.wpe.weight"]),
    "grouped queries and a gate": (
        hf_llama,
        [LLAMA.format(0, "self_attn.k_proj.weight"), LLAMA.format(1, "mlp.gate_proj.weight")],
    ),
    "untied embedding and logits": (hf_llama, ["model.embed_tokens.weight", "lm_head.weight"]),
    "a plain module": (lambda: seeded(Language), ["mix.weight", "embed.weight"]),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_moved_models_output(case, tmp_path):
    build, params = CASES[case]
    features = fitted(build(), params)
    before = snapshot(features.engine.adapter.module)
    features.to_lora(tmp_path / "adapter", STEPS)
    assert_same(before, snapshot(features.engine.adapter.module))
    check_equal(features, tmp_path / "adapter", build(), tokens())


def test_each_layers_rank_is_the_sum_of_the_features_and_its_scaling_1(tmp_path):
    import peft

    params = [GPT2.format(0, "attn.c_attn.weight[q]"), GPT2.format(0, "attn.c_attn.weight[k]")]
    features = fitted(hf_gpt2(), [*params, GPT2.format(1, "mlp.c_proj.weight")], rank=3)
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, hf_gpt2(), tokens())
    wrapped = peft.PeftModel.from_pretrained(hf_gpt2(), tmp_path)
    layers = {name: module for name, module in wrapped.named_modules() if hasattr(module, "lora_A")}
    ranks = {name.rpartition("h.")[2]: layer.r["default"] for name, layer in layers.items()}
    assert ranks == {"0.attn.c_attn": 12, "1.mlp.c_proj": 6}
    assert {layer.scaling["default"] for layer in layers.values()} == {1.0}


@pytest.mark.parametrize("kind", ["query_key_value", "qkv_proj"])
def test_parts_by_head_and_in_one_piece(kind, tmp_path):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, Phi3Config, Phi3ForCausalLM

    common = {"num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 24}
    common |= {"vocab_size": D_VOCAB, "max_position_embeddings": 12, "pad_token_id": 0}
    build = {
        "query_key_value": lambda: seeded(GPTNeoXForCausalLM, GPTNeoXConfig(**common)),
        "qkv_proj": lambda: seeded(Phi3ForCausalLM, Phi3Config(**common, num_key_value_heads=2)),
    }[kind]
    features = fitted(build(), f"*{kind}.weight[v]", rank=2)
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, build(), tokens())


@pytest.mark.parametrize("layer", [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv1d(2, 3, 3)], ids=["Conv2d", "Conv1d"])
def test_convolutions(layer, tmp_path):
    build = lambda: seeded(Between, layer)  # noqa: E731
    data = normal(20, 2, 7, 7) if isinstance(layer, nn.Conv2d) else normal(20, 2, 7)
    features = fitted(build(), ["layer.weight", "layer.bias"], inputs=data)
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, build(), data)


TRANSLATED = {
    "HookedTransformer of GPT-2": (hooked_gpt2, hf_gpt2, 2e-6),
    "HookedTransformer of Llama": (hooked_llama, hf_llama, 1e-5),
    "bridge of GPT-2": (lambda: booted(hf_gpt2, dtype=torch.float32), lambda: hf_gpt2(dtype=torch.float32), 1e-5),
    "bridge of Llama": (lambda: booted(hf_llama, dtype=torch.float32), lambda: hf_llama(dtype=torch.float32), 1e-5),
}


@pytest.mark.parametrize("library", TRANSLATED)
def test_features_of_transformer_lens_models_by_the_same_weights(library, tmp_path):
    pytest.importorskip("transformer_lens")
    build, hugging_face, tolerance = TRANSLATED[library]
    features = fitted(build(), ["blocks.0.attn.W_K", "blocks.1.attn.W_O", "blocks.1.mlp.W_out"], rank=2)
    features.to_lora(tmp_path, STEPS, model=hugging_face())
    check_equal(features, tmp_path, hugging_face(), tokens(), tolerance)


def test_a_bridge_whose_layers_are_unchanged_needs_no_other_model(tmp_path):
    pytest.importorskip("transformer_lens")
    features = fitted(booted(hf_llama, dtype=torch.float32), ["blocks.0.attn.W_K", "blocks.1.mlp.W_out"])
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, hf_llama(dtype=torch.float32), tokens(), 1e-5)


def test_a_model_inside_nnsight(tmp_path):
    pytest.importorskip("nnsight")
    features = fitted(wrapped_by_nnsight("NNsight", hf_llama), LLAMA.format(0, "self_attn.k_proj.weight"))
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, hf_llama(), tokens())


def test_bfloat16_differs_by_the_rounding_of_the_weights(tmp_path):
    build = lambda: hf_llama(dtype=torch.bfloat16)  # noqa: E731
    features = fitted(build(), LLAMA.format(0, "self_attn.v_proj.weight"))
    features.to_lora(tmp_path, STEPS)
    before, wanted = (out.float() for out in moved_output(features, tokens()))
    import peft

    with torch.no_grad():
        found = peft.PeftModel.from_pretrained(build(), tmp_path)(tokens()).logits.float()
    assert (found - wanted).norm() < 0.1 * (wanted - before).norm()
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_a_name_that_ends_another_is_not_confused(tmp_path):
    build = lambda: seeded(Nested)  # noqa: E731
    features = fitted(build(), "out.weight", inputs=normal(20, 5))
    features.to_lora(tmp_path, STEPS)
    check_equal(features, tmp_path, build(), normal(20, 5))


def test_the_folder_is_pefts_and_names_the_features(tmp_path):
    features = fitted(hf_gpt2(), GPT2.format(0, "attn.c_attn.weight[k]"))
    assert features.to_lora(tmp_path / "a" / "b", STEPS) == tmp_path / "a" / "b"
    assert sorted(item.name for item in (tmp_path / "a" / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert [item.name for item in (tmp_path / "a").iterdir()] == ["b"]
    config = json.loads((tmp_path / "a" / "b" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["task_type"], config["lora_alpha"]) == ("LORA", "CAUSAL_LM", config["r"])
    with safe_open(tmp_path / "a" / "b" / "adapter_model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["param_features"]) == {"0": 0.7, "2": -1.3}
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float32}  # noqa: SIM118
        assert set(file.keys()) == {
            f"base_model.model.transformer.h.0.attn.c_attn.lora_{side}.weight" for side in "AB"
        }  # fmt: skip


class Nested(nn.Module):
    """A layer `out`, and one whose name ends so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"out": nn.Linear(5, 5)})
        self.out = nn.Linear(5, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.inner["out"](x)))


class Reading(nn.Module):
    """Reads a layer's weight without calling it, as nn.MultiheadAttention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return torch.tanh(self.first(x)) @ self.layer.weight.T


def odd_convolution(**settings):
    return seeded(Between, nn.Conv2d(2, 4, 3, **settings))


TOKENS, VECTORS, IMAGES = {"tokens": tokens()}, {"inputs": normal(20, 5)}, {"inputs": normal(20, 2, 6, 6)}
LEFT_OUT = "'layer.weight' is of a Conv2d with groups, dilation or a padding mode"
REFUSED = {
    "a norm": (
        hf_gpt2,
        "transformer.h.0.ln_1.weight",
        TOKENS,
        "ln_1.weight' is the 'weight' of a LayerNorm",
    ),
    "tied embeddings": (hf_gpt2, "transformer.wte.weight", TOKENS, "'transformer.wte.weight' is held by 2 modules"),
    "a weight that is read": (lambda: seeded(Reading), "layer.weight", VECTORS, "uses 'layer' in other ways"),
    "groups": (lambda: odd_convolution(groups=2), "layer.weight", IMAGES, LEFT_OUT),
    "dilation": (lambda: odd_convolution(dilation=2), "layer.weight", IMAGES, LEFT_OUT),
    "padding": (lambda: odd_convolution(padding=1, padding_mode="circular"), "layer.weight", IMAGES, LEFT_OUT),
    "an RNN": (lambda: seeded(Recurrent), "lstm.weight_ih_l0", {"inputs": normal(20, 5, 4)}, "'weight_ih_l0' of a LSTM"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_peft_cannot_hold_is_refused_by_name(case, tmp_path):
    build, params, data, message = REFUSED[case]
    call = {"n_features": 4, "l0": 2, "steps": 3, "n_samples": 60, "progress": False}
    features = pf.decompose(build(), params, **data, **call)
    with pytest.raises(ExportError, match=message):
        features.to_lora(tmp_path / "adapter", STEPS)
    assert not list(tmp_path.iterdir())


def test_a_bias_beside_an_embedding_is_refused(tmp_path):
    features = fitted(seeded(Language), ["mix.bias", "embed.weight"])
    with pytest.raises(ExportError, match="the bias of 'mix' and the embedding 'embed'"):
        features.to_lora(tmp_path / "adapter", STEPS)


def test_transformer_lens_names_ask_for_the_other_model(tiny_features, tmp_path):
    with pytest.raises(ExportError, match=r"'blocks.0.attn.W_K' .* pass the Hugging Face model"):
        tiny_features.to_lora(tmp_path / "adapter", STEPS)


def test_layers_that_booting_made_ask_for_the_other_model(tmp_path):
    pytest.importorskip("transformer_lens")
    features = fitted(booted(hf_gpt2, dtype=torch.float32), "blocks.0.attn.W_K")
    with pytest.raises(ExportError, match="does not have in this form. Load that model again"):
        features.to_lora(tmp_path / "adapter", STEPS)


def test_folded_weights_are_refused(tmp_path):
    pytest.importorskip("transformer_lens")
    features = fitted(booted(hf_gpt2, compatible=True, dtype=torch.float32), "blocks.0.attn.W_K")
    with pytest.raises((FingerprintError, pf.errors.UnknownParameterError), match="Load the same checkpoint with the same"):
        features.to_lora(tmp_path / "adapter", STEPS, model=hf_gpt2(dtype=torch.float32))


@pytest.fixture(scope="module")
def gpt2_features():
    return fitted(shared("hf gpt2 sdpa"), GPT2.format(0, "mlp.c_fc.weight"))


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ({}, SettingError, "Give features with their step lengths"),
        ({4: 1.0}, FeatureCountError, "no feature 4. Features are numbered 0 to 3"),
        ({0: float("nan")}, SettingError, "δ of feature 0 is nan"),
        ({1: float("inf")}, SettingError, "δ of feature 1 is inf. Give a finite number"),
    ],
)
def test_wrong_steps(steps, error, message, gpt2_features, tmp_path):
    with pytest.raises(error, match=message):
        gpt2_features.to_lora(tmp_path / "adapter", steps)
    assert not list(tmp_path.iterdir())


def test_something_else_is_not_overwritten_and_an_adapter_is(gpt2_features, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds notes.txt, which an adapter does not have"):
        gpt2_features.to_lora(tmp_path, STEPS)
    with pytest.raises(StoreError, match="is a file"):
        gpt2_features.to_lora(tmp_path / "notes.txt", STEPS)
    folder = gpt2_features.to_lora(tmp_path / "adapter", {0: 1.0})
    first = (folder / lora.WEIGHTS).read_bytes()
    gpt2_features.to_lora(folder, {1: 1.0})
    assert (folder / lora.WEIGHTS).read_bytes() != first
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_what_was_there(error, gpt2_features, tmp_path, monkeypatch):
    folder = gpt2_features.to_lora(tmp_path / "adapter", STEPS)
    before = {item.name: item.read_bytes() for item in folder.iterdir()}

    def failing(*_):
        raise error

    monkeypatch.setattr(lora, "save_file", failing)
    with pytest.raises(error):
        gpt2_features.to_lora(folder, {1: 5.0})
    assert {item.name: item.read_bytes() for item in folder.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


def test_a_folder_that_cannot_be_put_in_place_leaves_what_was_there(gpt2_features, tmp_path, monkeypatch):
    adapter = gpt2_features.to_lora(tmp_path / "adapter", STEPS)
    before, replace = {item.name: item.read_bytes() for item in adapter.iterdir()}, os.replace

    def failing(source, target):
        if os.path.basename(source) == "new":
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(folder.os, "replace", failing)
    with pytest.raises(OSError, match="disk full"):
        gpt2_features.to_lora(adapter, {1: 5.0})
    assert {item.name: item.read_bytes() for item in adapter.iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["adapter"]


def test_without_a_model_or_peft(gpt2_features, tmp_path, monkeypatch):
    gpt2_features.save_pretrained(tmp_path / "features")
    with pytest.raises(NotBoundError, match="to_lora"):
        pf.load(tmp_path / "features").to_lora(tmp_path / "adapter", STEPS)
    pf.load(tmp_path / "features").to_lora(tmp_path / "adapter", STEPS, model=shared("hf gpt2 sdpa"))
    check_equal(gpt2_features, tmp_path / "adapter", hf_gpt2(attn_implementation="sdpa"), tokens())
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"pip install \"param_features\[hf\]\""):
        gpt2_features.to_lora(tmp_path / "other", STEPS)


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_real_model_through_disk(dtype, stories, tmp_path):
    """A grouped and two whole matrices of a trained model; float32 itself rounds its logits, up to 25, by 1e-5."""
    build = lambda: stories.load_hf()[0].to(dtype)  # noqa: E731
    rows = stories.load_tokens(max_sequences=60)
    params = [LLAMA.format(2, "self_attn.k_proj.weight"), LLAMA.format(3, "self_attn.o_proj.weight")]
    features = fitted(build(), [*params, LLAMA.format(4, "mlp.down_proj.weight")], tokens=rows)
    features.to_lora(tmp_path, STEPS)
    before, wanted = moved_output(features, rows)
    found = loaded_output(build(), tmp_path, rows)
    assert (wanted - before).abs().max() > 1
    assert (found - wanted).abs().max() < 1e-5 * (1 if dtype == torch.float64 else wanted.abs().max())
