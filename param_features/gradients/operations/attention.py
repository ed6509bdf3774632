"""`torch.nn.functional.multi_head_attention_forward`, which `nn.MultiheadAttention` and torch's transformer layers call."""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from param_features.gradients.operations.plain import linear
from param_features.gradients.operations.watch import Watch, handles

_SIGNATURE = inspect.signature(functional.multi_head_attention_forward)
_WEIGHTS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@handles(functional.multi_head_attention_forward)
def multi_head_attention(watch: Watch, *args: Any, **kwargs: Any) -> Any:
    """Do the projections beside torch's function, and give it identity matrices in their place.

    Cost: four products with an identity matrix, so that masks, added keys and weights stay torch's own.
    """
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if given["query"].dim() != 3 or given["static_k"] is not None or given["static_v"] is not None:
        return NotImplemented
    query, key, value = _projected(watch, given)
    eye = torch.eye(given["embed_dim_to_check"], dtype=query.dtype, device=query.device)
    given |= {"query": query, "key": key, "value": value, "in_proj_weight": None, "in_proj_bias": None}
    given |= dict.fromkeys(_WEIGHTS, eye) | {"use_separate_proj_weight": True}
    out_weight, out_bias = given["out_proj_weight"], given["out_proj_bias"]
    output, weights = functional.multi_head_attention_forward(**given | {"out_proj_weight": eye, "out_proj_bias": None})
    return linear(watch, output.transpose(0, 1), out_weight, out_bias).transpose(0, 1), weights


def _projected(watch: Watch, given: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, [pos batch d]."""
    inputs = [given[name].transpose(0, 1) for name in ("query", "key", "value")]
    weights, bias = [given[name] for name in _WEIGHTS], given["in_proj_bias"]
    if not given["use_separate_proj_weight"]:
        if given["query"] is given["key"] is given["value"]:
            packed = linear(watch, inputs[0], given["in_proj_weight"], bias)
            return tuple(part.transpose(0, 1) for part in packed.chunk(3, -1))  # pyright: ignore[reportReturnType]
        weights = watch.parts(given["in_proj_weight"], 3)
    biases = [None] * 3 if bias is None else watch.parts(bias, 3)
    return tuple(  # pyright: ignore[reportReturnType]
        linear(watch, *each).transpose(0, 1) for each in zip(inputs, weights, biases, strict=True)
    )
