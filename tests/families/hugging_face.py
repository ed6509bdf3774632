"""What the families of Hugging Face transformers share: sizes of tiny models, and how one is built."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from tests.families.family import D_VOCAB, Family, noisy, tokens

SIZES = {
    "vocab_size": D_VOCAB, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip
PLAIN = {"vocab_size": D_VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 2, "head_dim": 4}

K_PROJ = "model.layers.0.self_attn.k_proj.weight"
FLOAT32 = 1e-5
"""Models that compute their norms, rotations or softmax in float32, whatever their weights are."""


def transformers_model(
    kind: str,
    sizes: dict[str, Any],
    *,
    task: str = "CausalLM",
    experts: str = "",
    noise: float = 0.1,
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """A model of transformers.

    Args:
        kind: The `model_type` of its configuration.
        sizes: What replaces the configuration's defaults.
        task: Its class, or what follows `AutoModelFor` in the name of the one that finds it.
        experts: How experts are run; the library's default where empty.
        noise: Standard deviation of what is added to every weight.
        dtype: Of the weights; some kernels take no float64.
    """
    import transformers

    config = transformers.AutoConfig.for_model(kind, **sizes)
    if "For" in task:
        model = getattr(transformers, task)(config)
    else:
        model = getattr(transformers, f"AutoModelFor{task}").from_config(config)
    if experts:
        model.set_experts_implementation(experts)
    return noisy(model, scale=noise, dtype=dtype)


def transformers_family(
    group: str,
    name: str,
    kind: str,
    param: str,
    *,
    data: Callable = tokens,
    task: str = "CausalLM",
    common: bool = False,
    rounding: float = FLOAT32,
    experts: str = "",
    dtype: torch.dtype = torch.float64,
    base: dict[str, Any] = SIZES,
    **sizes: Any,
) -> Family:
    """A model of transformers, of `base` and `sizes`; see `transformers_model` and `Family`."""
    build = partial(transformers_model, kind, base | sizes, task=task, experts=experts, dtype=dtype)
    return Family(name, group, build, data, param, common, rounding)
