"""Attention patterns of every head, read with forward hooks, whichever library the model comes from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import AdapterError
from param_features.params import Adapter, held_still
from param_features.problem import ModelInputs

Patterns = dict[str, Float[Tensor, "row head query key"]]
"""By the attention layer's name, first layer first."""

_HOOK = ".hook_pattern"


@torch.no_grad()
def attention_patterns(adapter: Adapter, inputs: ModelInputs) -> Patterns:
    """What each head attends to, from each position; rows of a pattern add up to 1.

    TransformerLens models have a hook point for it. Of a Hugging Face model the attention layers' second output is read,
    with the attention computed plainly ("eager") meanwhile: other implementations never form the pattern. Its own
    `output_attentions=True` is not used, since it leaves hooks behind.

    Cost: a forward pass.

    Raises:
        AdapterError: The model shows no attention patterns.
    """
    patterns: Patterns = {}
    points = _pattern_points(adapter)
    with held_still(adapter.module), _eager(adapter.module), ExitStack() as hooks:
        for name, point in (points or _children(adapter.module)).items():
            keep = _keep(patterns, name.removesuffix(_HOOK), inputs, is_point=bool(points))
            hooks.callback(point.register_forward_hook(keep).remove)
        adapter.run(*inputs.args, **inputs.kwargs)
    if not patterns:
        raise AdapterError(
            f"{type(adapter.model).__name__} shows no attention patterns. Models of TransformerLens (hook points named "
            "'…attn.hook_pattern') and Hugging Face models whose attention layers return their weights are read; load the "
            "model into one of these."
        )
    return patterns


def _pattern_points(adapter: Adapter) -> dict[str, nn.Module]:
    """TransformerLens' hook points of patterns, each by its shortest name: a bridge's have several."""
    names: dict[nn.Module, list[str]] = {}
    for name, point in adapter.hook_points().items():
        if name.endswith(_HOOK):
            names.setdefault(point, []).append(name)
    return {min(aliases, key=len): point for point, aliases in names.items()}


def _children(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in module.named_modules() if name}


def _keep(patterns: Patterns, name: str, inputs: ModelInputs, *, is_point: bool) -> Callable[..., None]:
    """A hook that keeps the pattern in what a module gives; where layers lie in each other, the inner one has it."""

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        value: Any = output if is_point else output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if _is_pattern(value, inputs) and not any(value is pattern for pattern in patterns.values()):
            patterns[name] = value

    return keep


def _is_pattern(value: Any, inputs: ModelInputs) -> bool:
    if not isinstance(value, Tensor) or value.dim() != 4 or not value.is_floating_point():
        return False
    rows, _, queries, keys = value.shape
    return (rows, queries, keys) == (len(inputs), inputs.n_pos, inputs.n_pos)


@contextmanager
def _eager(module: nn.Module) -> Iterator[None]:
    """A Hugging Face model with plain attention; other models as they are."""
    choose: Any = getattr(module, "set_attn_implementation", None)
    chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if choose is None or chosen in (None, "eager"):
        yield
        return
    try:
        choose("eager")
        yield
    finally:
        choose(chosen)
