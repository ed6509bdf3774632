"""Mixtures of experts of transformers; their default experts take no float64."""

from functools import partial

import torch

from tests.families.hugging_face import FLOAT32, GROUPED, K_PROJ, transformers_family

_EXPERTS = {
    **GROUPED, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}  # fmt: skip
_LATENT = {
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4, "head_dim": 4,
}  # fmt: skip
_experts = partial(transformers_family, "Mixtures of experts", dtype=torch.float32, rounding=1e-3)

EXPERTS = [
    _experts("Mixtral", "mixtral", K_PROJ, common=True, **_EXPERTS),
    _experts(
        "Mixtral, eager experts",
        "mixtral",
        "model.layers.0.mlp.experts.gate_up_proj",
        common=True,
        experts="eager",
        dtype=torch.float64,
        rounding=FLOAT32,
        **_EXPERTS,
    ),
    _experts(
        "Qwen2-MoE",
        "qwen2_moe",
        "model.layers.0.mlp.shared_expert.up_proj.weight",
        shared_expert_intermediate_size=8,
        **_EXPERTS,
    ),
    _experts("Qwen3-MoE", "qwen3_moe", "model.layers.0.mlp.gate.weight", common=True, **_EXPERTS),
    _experts("OLMoE", "olmoe", K_PROJ, **_EXPERTS),
    _experts("DeepSeek-V2", "deepseek_v2", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", **_LATENT),
    _experts("DeepSeek-V3", "deepseek_v3", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight", common=True, **_LATENT),
    _experts("GPT-OSS", "gpt_oss", K_PROJ, common=True, sliding_window=3, **_EXPERTS),
    _experts("Granite-MoE", "granitemoe", K_PROJ, **_EXPERTS),
    _experts("Phi-MoE", "phimoe", K_PROJ, **_EXPERTS),
    _experts("Llama-4", "llama4_text", K_PROJ, intermediate_size_mlp=24, **_EXPERTS),
    _experts("JetMoE", "jetmoe", "model.layers.0.self_attention.kv_proj.weight", kv_channels=4, **_EXPERTS),
    _experts("MiniMax", "minimax", "model.layers.1.self_attn.qkv_proj.weight", **_EXPERTS),
    _experts("ERNIE-4.5-MoE", "ernie4_5_moe", K_PROJ, moe_num_experts=4, moe_k=2, **_EXPERTS),
    _experts("GLM-4-MoE", "glm4_moe", K_PROJ, **(_EXPERTS | {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1})),
    _experts("FlexOLMo", "flex_olmo", K_PROJ, **_EXPERTS),
    _experts(
        "Qwen3-Next",
        "qwen3_next",
        "model.layers.1.self_attn.k_proj.weight",
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
        shared_expert_intermediate_size=8,
        **_EXPERTS,
    ),
    _experts(
        "Jamba",
        "jamba",
        "model.layers.1.self_attn.k_proj.weight",
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=4,
        mamba_dt_rank=2,
        **_EXPERTS,
    ),
]
