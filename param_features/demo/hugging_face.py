"""The demo model as a Hugging Face GPT-2, whose formulas are the same."""

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from param_features.demo.loading import load_tokenizer
from param_features.demo.vocabulary import CONFIG_FILE, MODEL_DIR, TOKENIZER_FILE, WEIGHTS_FILE
from param_features.errors import MissingExtraError

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


def load_hf() -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """The demo language model as transformers' GPT-2, and its tokenizer.

    The weights are those of `pf.demo.load_model`, laid out as GPT-2 has them: queries, keys and values in one matrix. The
    unembedding has a bias, which GPT-2's has not.

    Returns:
        The model on the CPU in float32 and eval mode; the tokenizer, which prepends `<bos>`.

    Raises:
        MissingExtraError: transformers cannot be imported.
    """
    tokenizer = load_tokenizer(MODEL_DIR / TOKENIZER_FILE)
    try:
        from safetensors.torch import load_file
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise MissingExtraError(
            f"The demo model as GPT-2 needs transformers, and the import failed: {error}. Version 5.9 and up is accepted. "
            'Run: pip install "param_features[hf]".'
        ) from error
    sizes = json.loads((MODEL_DIR / CONFIG_FILE).read_text(encoding="utf-8"))["architecture"]
    settings: dict[str, Any] = {
        "vocab_size": sizes["d_vocab"], "n_positions": sizes["n_ctx"], "n_embd": sizes["d_model"],
        "n_layer": sizes["n_layers"], "n_head": sizes["n_heads"], "n_inner": sizes["d_mlp"],
        "activation_function": sizes["act_fn"], "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = GPT2LMHeadModel(GPT2Config(**settings))
    model.lm_head.bias = nn.Parameter(torch.zeros(sizes["d_vocab"]))
    model.load_state_dict(_as_gpt2(load_file(MODEL_DIR / WEIGHTS_FILE), sizes["n_layers"]))
    return model.eval(), tokenizer


def _as_gpt2(saved: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The weights under GPT-2's names, in its shapes."""
    weights = {
        "transformer.wte.weight": saved["embed.W_E"],
        "transformer.wpe.weight": saved["pos_embed.W_pos"],
        "transformer.ln_f.weight": saved["ln_final.w"],
        "transformer.ln_f.bias": saved["ln_final.b"],
        "lm_head.weight": saved["unembed.W_U"].T,
        "lm_head.bias": saved["unembed.b_U"],
    }
    for layer in range(n_layers):
        ours, theirs = f"blocks.{layer}.", f"transformer.h.{layer}."
        parts = [saved[f"{ours}attn.W_{name}"].movedim(0, 1).flatten(1) for name in "QKV"]  # [d_model, heads · d_head]
        weights[f"{theirs}attn.c_attn.weight"] = torch.cat(parts, dim=1)
        weights[f"{theirs}attn.c_attn.bias"] = torch.cat([saved[f"{ours}attn.b_{name}"].flatten() for name in "QKV"])
        weights[f"{theirs}attn.c_proj.weight"] = saved[f"{ours}attn.W_O"].flatten(0, 1)
        weights[f"{theirs}attn.c_proj.bias"] = saved[f"{ours}attn.b_O"]
        for norm in ("1", "2"):
            weights[f"{theirs}ln_{norm}.weight"] = saved[f"{ours}ln{norm}.w"]
            weights[f"{theirs}ln_{norm}.bias"] = saved[f"{ours}ln{norm}.b"]
        for name, place in (("in", "c_fc"), ("out", "c_proj")):
            weights[f"{theirs}mlp.{place}.weight"] = saved[f"{ours}mlp.W_{name}"]
            weights[f"{theirs}mlp.{place}.bias"] = saved[f"{ours}mlp.b_{name}"]
    return weights
