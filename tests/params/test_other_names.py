"""What a name that matches nothing may have meant."""

import re

import pytest

import param_features as pf
from param_features.errors import UnknownParameterError
from param_features.params import adapter_for, select
from param_features.params.other_names import what_was_meant

LENS = [f"blocks.{i}.attn.W_{x}" for i in (0, 1) for x in "QKVO"] + ["blocks.0.attn.b_K", "embed.W_E", "unembed.W_U"]
LENS += [f"blocks.{i}.mlp.{name}" for i in (0, 1) for name in ("W_in", "W_out", "W_gate")] + ["pos_embed.W_pos"]
LLAMA = [f"model.layers.{i}.self_attn.{x}_proj.weight" for i in (0, 1) for x in "qkvo"]
LLAMA += [f"model.layers.{i}.mlp.{name}_proj.weight" for i in (0, 1) for name in ("gate", "up", "down")]
LLAMA += ["model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.k_proj.bias"]
GPT2 = [f"transformer.h.{i}.attn.c_attn.weight[{x}]" for i in (0, 1) for x in "qkv"] + ["transformer.wpe.weight"]
GPT2 += [f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
NEOX = ["gpt_neox.layers.1.attention.dense.weight", "gpt_neox.layers.1.mlp.dense_h_to_4h.weight", "embed_out.weight"]
BERT = ["encoder.layer.1.attention.self.key.weight", "encoder.layer.1.attention.output.dense.weight"]
PAIRS = [
    ("blocks.0.attn.W_K", "model.layers.0.self_attn.k_proj.weight"),
    ("blocks.0.attn.b_K", "model.layers.0.self_attn.k_proj.bias"),
    ("blocks.1.attn.W_O", "model.layers.1.self_attn.o_proj.weight"),
    ("blocks.1.mlp.W_in", "model.layers.1.mlp.up_proj.weight"),
    ("blocks.1.mlp.W_gate", "model.layers.1.mlp.gate_proj.weight"),
    ("blocks.0.mlp.W_out", "model.layers.0.mlp.down_proj.weight"),
    ("embed.W_E", "model.embed_tokens.weight"),
    ("unembed.W_U", "lm_head.weight"),
    ("blocks.1.attn.W_V", "transformer.h.1.attn.c_attn.weight[v]"),
    ("blocks.1.attn.W_O", "transformer.h.1.attn.c_proj.weight"),
    ("blocks.1.mlp.W_in", "transformer.h.1.mlp.c_fc.weight"),
    ("blocks.1.mlp.W_out", "transformer.h.1.mlp.c_proj.weight"),
    ("pos_embed.W_pos", "transformer.wpe.weight"),
    ("blocks.1.attn.W_O", "gpt_neox.layers.1.attention.dense.weight"),
    ("blocks.1.mlp.W_in", "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"),
    ("unembed.W_U", "embed_out.weight"),
    ("blocks.1.attn.W_K", "encoder.layer.1.attention.self.key.weight"),
    ("blocks.1.attn.W_O", "encoder.layer.1.attention.output.dense.weight"),
]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
def test_another_librarys_name_is_translated_both_ways(ours, theirs):
    library = next(names for names in (LLAMA, GPT2, NEOX, BERT) if theirs in names)
    assert what_was_meant(ours, library) == f"That weight is {theirs!r} here. "
    assert what_was_meant(theirs, LENS) == f"That weight is {ours!r} here. "


@pytest.mark.parametrize("text", ["W_K", "w_k", "attn.W_K"])
def test_what_names_end_in_is_no_name_but_a_glob_of_them(text):
    said = what_was_meant(text, LENS)
    assert said.startswith("2 end in it, such as 'blocks.0.attn.W_K', 'blocks.1.attn.W_K': ")
    glob = re.search(r"'(\*[^']+)'", said).group(1)
    assert glob.endswith("W_K")


@pytest.mark.parametrize("text", [r"blocks\.\d\.attn\.W_K", "blocks.(0|1).attn.W_K", "blocks.+W_K", r".*W_K"])
def test_a_regex_in_a_string_is_told(text):
    assert what_was_meant(text, LENS).endswith(f"give re.compile({text!r}). ")


@pytest.mark.parametrize("text", ["blocks.0.attn.W_Z", "zzz", "blocks.(", "blocks.9.attn.W_K"])
def test_nothing_is_said_where_nothing_is_known(text):
    assert what_was_meant(text, LENS) == ""


def test_the_error_holds_it_beside_the_nearest(tiny_hooked):
    for text, said in [("W_K", "2 end in it"), ("model.layers.1.self_attn.q_proj.weight", "'blocks.1.attn.W_Q' here")]:
        with pytest.raises(UnknownParameterError, match=f"{said}.*nearest: .*pf.list_params"):
            pf.decompose(tiny_hooked, text, [[1, 2]])


@pytest.mark.parametrize("kind", [tuple, set, dict.fromkeys, iter])
def test_names_come_in_any_collection(tiny_hooked, kind):
    chosen = select(adapter_for(tiny_hooked).views(), kind(["embed.W_E"]))
    assert chosen.names == ("embed.W_E",)
