"""Attention layers whose scores are known: transformers' and torch's by the class that holds the matrices.

Only layers in which nothing but a rotation comes between W_Q x or W_K x and their product are listed: no norm, no clipping.
Known by class names, so that no library is imported.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from param_features.params import Attention, Rotary, class_names


def rotary_of_table(cosine: Tensor, sine: Tensor, *, is_adjacent: bool) -> Rotary:
    """The rotation that a row of a model's table stands for: that of position 1, each angle twice."""
    cosine, sine = (row.double()[::2] if is_adjacent else row.double()[: len(row) // 2] for row in (cosine, sine))
    return Rotary(tuple(torch.atan2(sine, cosine).tolist()), is_adjacent, float(torch.hypot(sine, cosine)[0]))


def _shared_rotary(model: nn.Module) -> Rotary | None:
    """That of the one module with frequencies, which all layers share; None where there are none or several.

    Those for contexts up to the trained length, where the model stretches them beyond.
    """
    holders = [module for module in model.modules() if "inv_freq" in module._buffers]
    if len(holders) != 1:
        return None
    buffers = holders[0]._buffers
    frequencies = buffers.get("original_inv_freq", buffers["inv_freq"])
    if frequencies is None:
        return None
    return Rotary(tuple(frequencies.double().tolist()), gain=float(getattr(holders[0], "attention_scaling", 1.0)))


def _turned(query: str, key: str) -> Callable[[Any, nn.Module], Attention | None]:
    """Layers that turn halves of each head by the model's shared frequencies."""

    def read(attention: Any, model: nn.Module) -> Attention | None:
        rotary, config = _shared_rotary(model), attention.config
        if rotary is None or getattr(attention, "qk_layernorm", False):
            return None
        n_key_heads = getattr(config, "num_key_value_heads", None)
        return Attention(query, key, config.num_attention_heads, 1 / attention.scaling, n_key_heads, rotary)

    return read


def _gpt2(attention: Any, model: nn.Module) -> Attention | None:
    if attention.is_cross_attention:
        return None
    return Attention("c_attn.weight[q]", "c_attn.weight[k]", attention.num_heads, 1 / attention.scaling)


def _gpt_neo(attention: Any, model: nn.Module) -> Attention:
    return Attention("q_proj.weight", "k_proj.weight", attention.num_heads, 1.0)


def _gpt_j(attention: Any, model: nn.Module) -> Attention | None:
    if attention.rotary_dim is None:
        return None
    rotary = Rotary.of_base(attention.rotary_dim, is_adjacent=True)
    scale = float(attention.scale_attn)
    return Attention("q_proj.weight", "k_proj.weight", attention.num_attention_heads, scale, rotary=rotary)


def _opt(attention: Any, model: nn.Module) -> Attention:
    return Attention("q_proj.weight", "k_proj.weight", attention.num_heads, 1 / attention.scaling)


def _torch(attention: Any, model: nn.Module) -> Attention | None:
    if not attention._qkv_same_embed_dim:
        return None
    scale = math.sqrt(attention.head_dim)
    return Attention("in_proj_weight[q]", "in_proj_weight[k]", attention.num_heads, scale)


def _native(attention: Any, model: nn.Module) -> Attention:
    rotary = attention.rotary
    if rotary is not None:
        rotary = rotary_of_table(rotary.cos_cached[1], rotary.sin_cached[1], is_adjacent=True)
    return Attention("q.weight", "k.weight", attention.n_heads, attention.scale, attention.n_kv_heads, rotary)


_llama = _turned("q_proj.weight", "k_proj.weight")
_KNOWN: dict[str, Callable[[Any, nn.Module], Attention | None]] = {
    "torch.MultiheadAttention": _torch,
    "transformer_lens.NativeAttention": _native,
    "transformers.GPT2Attention": _gpt2,
    "transformers.GPTJAttention": _gpt_j,
    "transformers.GPTNeoSelfAttention": _gpt_neo,
    "transformers.GPTNeoXAttention": _turned("query_key_value.weight[q]", "query_key_value.weight[k]"),
    "transformers.GemmaAttention": _llama,
    "transformers.LlamaAttention": _llama,
    "transformers.MistralAttention": _llama,
    "transformers.MixtralAttention": _llama,
    "transformers.OPTAttention": _opt,
    "transformers.Phi3Attention": _turned("qkv_proj.weight[q]", "qkv_proj.weight[k]"),
    "transformers.PhiAttention": _llama,
    "transformers.Qwen2Attention": _llama,
}


def attention_of(layer: nn.Module, model: nn.Module) -> Attention | None:
    """How a layer of `model` makes its scores, matrices named from the layer; None when not known."""
    for class_name in class_names(layer):
        reader = _KNOWN.get(class_name)
        if reader is not None:
            return reader(layer, model)
    return None
