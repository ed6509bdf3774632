"""Decoders of transformers: one stack of attention and MLPs."""

from functools import partial

import torch

from tests.families.hugging_face import GROUPED, K_PROJ, PLAIN, transformers_family

_decoder = partial(transformers_family, "Decoders")

DECODERS = [
    _decoder("GPT-2", "gpt2", "transformer.h.0.attn.c_attn.weight[k]", common=True),
    _decoder(
        "GPT-Neo",
        "gpt_neo",
        "transformer.h.0.attn.attention.k_proj.weight",
        attention_types=[[["global", "local"], 1]],
        window_size=4,
    ),
    _decoder("GPT-J", "gptj", "transformer.h.0.attn.k_proj.weight", rotary_dim=4),
    _decoder("GPT-NeoX (Pythia)", "gpt_neox", "gpt_neox.layers.0.attention.query_key_value.weight[k]", common=True),
    _decoder(
        "OPT", "opt", "model.decoder.layers.0.self_attn.k_proj.weight", common=True, ffn_dim=24, word_embed_proj_dim=16
    ),
    _decoder("BLOOM", "bloom", "transformer.h.0.self_attention.query_key_value.weight", common=True),
    _decoder("MPT", "mpt", "transformer.blocks.0.attn.Wqkv.weight"),
    _decoder("Falcon", "falcon", "transformer.h.0.self_attention.query_key_value.weight", common=True),
    _decoder("CodeGen", "codegen", "transformer.h.0.attn.qkv_proj.weight", rotary_dim=4),
    _decoder("GPT-BigCode", "gpt_bigcode", "transformer.h.0.attn.c_attn.weight"),
    _decoder("BioGPT", "biogpt", "biogpt.layers.0.self_attn.k_proj.weight"),
    _decoder("OpenAI GPT", "openai-gpt", "transformer.h.0.attn.c_attn.weight"),
    _decoder(
        "XGLM", "xglm", K_PROJ, attention_heads=4, ffn_dim=24, d_model=16, num_layers=2, dtype=torch.float32, rounding=1e-3
    ),
    _decoder(
        "XLNet",
        "xlnet",
        "transformer.layer.0.rel_attn.k",
        common=True,
        base=PLAIN,
        d_model=16,
        n_layer=2,
        n_head=4,
        d_inner=24,
    ),
    _decoder("Phi", "phi", K_PROJ, common=True),
    _decoder("Phi-3", "phi3", "model.layers.0.self_attn.qkv_proj.weight"),
    _decoder("Llama", "llama", K_PROJ, common=True, **GROUPED),
    _decoder(
        "Llama, tied embeddings", "llama", "model.embed_tokens.weight", common=True, tie_word_embeddings=True, **GROUPED
    ),
    _decoder("Mistral", "mistral", K_PROJ, common=True, sliding_window=3, **GROUPED),
    _decoder("Gemma", "gemma", K_PROJ, **GROUPED),
    _decoder(
        "Gemma-2",
        "gemma2",
        K_PROJ,
        common=True,
        final_logit_softcapping=1.0,
        attn_logit_softcapping=1.0,
        sliding_window=3,
        query_pre_attn_scalar=4,
        **GROUPED,
    ),
    _decoder("Gemma-3", "gemma3_text", K_PROJ, common=True, sliding_window=3, query_pre_attn_scalar=4, **GROUPED),
    _decoder("Qwen2", "qwen2", K_PROJ, **GROUPED),
    _decoder("Qwen3", "qwen3", K_PROJ, common=True, **GROUPED),
    _decoder("OLMo", "olmo", K_PROJ),
    _decoder("OLMo-2", "olmo2", K_PROJ, common=True, **GROUPED),
    _decoder("OLMo-3", "olmo3", K_PROJ, sliding_window=3, **GROUPED),
    _decoder("Cohere", "cohere", K_PROJ, common=True, logit_scale=0.3, **GROUPED),
    _decoder("Cohere-2", "cohere2", K_PROJ, sliding_window=3, **GROUPED),
    _decoder("Granite", "granite", K_PROJ, common=True, logits_scaling=3.0, residual_multiplier=0.5, **GROUPED),
    _decoder("StableLM", "stablelm", K_PROJ, num_key_value_heads=4),
    _decoder("StarCoder-2", "starcoder2", K_PROJ, **GROUPED),
    _decoder("SmolLM-3", "smollm3", K_PROJ, **GROUPED),
    _decoder("GLM", "glm", K_PROJ, **GROUPED),
    _decoder("GLM-4", "glm4", K_PROJ, **GROUPED),
    _decoder("Nemotron", "nemotron", K_PROJ, num_key_value_heads=4),
    _decoder("Persimmon", "persimmon", "model.layers.0.self_attn.query_key_value.weight"),
    _decoder("EXAONE-4", "exaone4", K_PROJ, **GROUPED),
    _decoder("Ministral", "ministral", K_PROJ, sliding_window=3, **GROUPED),
    _decoder("Apertus", "apertus", K_PROJ, **GROUPED),
    _decoder("DiffLlama", "diffllama", K_PROJ),
    _decoder("ModernBERT decoder", "modernbert-decoder", "model.layers.0.attn.k_proj.weight"),
]
