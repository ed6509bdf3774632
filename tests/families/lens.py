"""TransformerLens' models, by configuration; bridges over Hugging Face models."""

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.adapters.zoo import booted, native
from tests.families.family import D_VOCAB, Family, ids, tokens
from tests.families.hugging_face import transformers_model
from tests.models import hooked_transformer, randomised

_HOOKED, _BRIDGE = "TransformerLens: HookedTransformer", "TransformerLens: TransformerBridge"
_SIZES = {
    "n_layers": 2, "d_model": 16, "n_heads": 2, "d_head": 8, "d_mlp": 24, "d_vocab": D_VOCAB, "n_ctx": 12, "act_fn": "gelu",
    "seed": 0, "device": "cpu", "normalization_type": "LN", "dtype": torch.float64,
}  # fmt: skip


def _hooked(
    name: str, *, common: bool = False, rounding: float = 1e-9, param: str = "blocks.0.attn.W_K", **changes: Any
) -> Family:
    return Family(name, _HOOKED, partial(hooked_transformer, **changes), tokens, param, common, rounding)


HOOKED = [
    _hooked("LayerNorm, learned positions", common=True),
    _hooked("LayerNorm without weights", normalization_type="LNPre"),
    _hooked(
        "RMSNorm, rotary positions, gated MLP",
        common=True,
        normalization_type="RMS",
        positional_embedding_type="rotary",
        rotary_dim=8,
        gated_mlp=True,
        act_fn="silu",
    ),
    _hooked("RMSNorm without weights", normalization_type="RMSPre"),
    _hooked("no norm", normalization_type=None),
    _hooked("shortformer positions", positional_embedding_type="shortformer"),
    _hooked("ALiBi", positional_embedding_type="alibi"),
    _hooked("grouped queries", common=True, n_heads=4, n_key_value_heads=2, param="blocks.0.attn._W_K"),
    _hooked("parallel attention and MLP", parallel_attn_mlp=True),
    _hooked("attention only", common=True, attn_only=True),
    _hooked("local attention", attn_types=["global", "local"], use_local_attn=True, window_size=3),
    _hooked("soft caps", common=True, attn_scores_soft_cap=3.0, output_logits_soft_cap=3.0),
    _hooked("norms after blocks", use_normalization_before_and_after=True, normalization_type="RMS"),
    _hooked(
        "mixture of experts",
        num_experts=4,
        experts_per_token=2,
        gated_mlp=True,
        act_fn="silu",
        param="blocks.0.mlp.experts.0.W_in.weight",
        dtype=torch.float32,
        rounding=1e-3,
    ),
    _hooked("split queries, keys and values", use_split_qkv_input=True, use_attn_result=True),
]


def hooked_encoder() -> Any:
    """BERT as TransformerLens has it."""
    from transformer_lens import HookedEncoder, HookedTransformerConfig

    return _filled(HookedEncoder(HookedTransformerConfig(**_SIZES | {"attention_dir": "bidirectional"})))


def hooked_encoder_decoder() -> Any:
    """T5 as TransformerLens has it."""
    from transformer_lens import HookedEncoderDecoder, HookedTransformerConfig

    changes = {
        "attention_dir": "bidirectional", "positional_embedding_type": "relative_positional_bias", "use_attn_scale": False,
        "relative_attention_num_buckets": 4, "relative_attention_max_distance": 8, "normalization_type": "RMS",
        "decoder_start_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    return _filled(HookedEncoderDecoder(HookedTransformerConfig(**_SIZES | changes)))


def _filled(model: nn.Module) -> nn.Module:
    """With random weights: TransformerLens leaves those of its encoders as the memory was."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return randomised(model).double()


def both_sides(n_rows: int) -> dict[str, Any]:
    """Rows for the encoder and for its decoder."""
    return {"inputs": {"input": ids(n_rows, 7), "decoder_input": ids(n_rows, 5)}}


ENCODERS = [
    Family("HookedEncoder (BERT)", "TransformerLens: encoders", hooked_encoder, tokens, "blocks.0.attn.W_K", True),
    Family(
        "HookedEncoderDecoder (T5)",
        "TransformerLens: encoders",
        hooked_encoder_decoder,
        both_sides,
        "decoder.0.cross_attn.W_K",
    ),
]


def bridge(kind: str, sizes: dict[str, Any]) -> Any:
    """TransformerLens' bridge over a model of transformers."""
    experts = "eager" if "num_local_experts" in sizes else ""  # the default ones take no float64
    return booted(lambda dtype: transformers_model(kind, sizes, experts=experts, dtype=dtype), dtype=torch.float64)


def _bridge_family(name: str, kind: str, *, common: bool = False, **sizes: Any) -> Family:
    sizes = _HF | sizes
    return Family(name, _BRIDGE, partial(bridge, kind, sizes), tokens, "blocks.0.attn.W_K", common, 1e-5)


_HF = {
    "vocab_size": D_VOCAB, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip
_GROUPED = {"num_key_value_heads": 2, "head_dim": 4}

BRIDGES = [
    Family("of its own", _BRIDGE, native, tokens, "blocks.0.attn.W_K"),
    _bridge_family("GPT-2", "gpt2", common=True),
    _bridge_family("GPT-NeoX (Pythia)", "gpt_neox", common=True),
    _bridge_family("OPT", "opt", ffn_dim=24, word_embed_proj_dim=16),
    _bridge_family("BLOOM", "bloom"),
    _bridge_family("Phi", "phi"),
    _bridge_family("Phi-3", "phi3"),
    _bridge_family("Llama", "llama", common=True, **_GROUPED),
    _bridge_family("Mistral", "mistral", **_GROUPED),
    _bridge_family(
        "Gemma-2", "gemma2", common=True, final_logit_softcapping=1.0, query_pre_attn_scalar=4, sliding_window=3, **_GROUPED
    ),
    _bridge_family("Qwen2", "qwen2", **_GROUPED),
    _bridge_family("Qwen3", "qwen3", **_GROUPED),
    _bridge_family("Mixtral", "mixtral", num_local_experts=4, **_GROUPED),
]

LENS = [*HOOKED, *ENCODERS, *BRIDGES]
