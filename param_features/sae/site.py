"""The model's activations at a named place, and the model run with others in their stead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import InputError, NonFiniteError, UnknownHookError, nearest
from param_features.params import Adapter, held_still
from param_features.problem import ModelInputs

_POSITIONS_PER_BATCH = 4096


def activations_at(
    adapter: Adapter, inputs: ModelInputs, hook_name: str, *, per_position: bool | None = None
) -> Float[Tensor, "sample ..."]:
    """Read what passes a hook point or leaves a submodule, for every sample; on the CPU.

    A sample is a real position of a sequence, rows first; or an input. Padding is left out.

    Cost: one forward pass.

    Args:
        adapter: Reads the model.
        inputs: Every row is run.
        hook_name: A hook point of TransformerLens (`"blocks.2.hook_resid_post"`), or a submodule's name, whose output is
            taken: the first tensor of a tuple.
        per_position: Whether a sample is a position; by default, where the activations have an axis for the tokens'
            positions, and another after it.

    Raises:
        UnknownHookError: The model has no such place; lists the nearest.
        InputError: The place is passed never or twice in a forward pass, gives no tensor, or has no axis of positions.
        NonFiniteError: The activations hold NaN or infinity.
    """
    size = max(1, _POSITIONS_PER_BATCH // inputs.n_pos)
    starts = range(0, len(inputs), size)
    parts = [_samples(adapter, inputs.rows(slice(start, start + size)), hook_name, per_position) for start in starts]
    activations = torch.cat(parts)
    if not bool(torch.isfinite(activations).all()):
        raise NonFiniteError(f"Activations at {hook_name!r} hold NaN or infinity. Check the model and its inputs.")
    return activations


def has_positions(acts: Tensor, inputs: ModelInputs) -> bool:
    """Whether activations have an axis for the samples' or the tokens' positions, and another after it."""
    has_any = inputs.samples is not None or inputs.tokens is not None
    return has_any and acts.dim() > 2 and acts.shape[:2] == (len(inputs), inputs.n_pos)


@torch.no_grad()
def run_replaced(
    adapter: Adapter, inputs: ModelInputs, hook_name: str, replace: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Run the model with other activations at a place; gives its output, and the activations that were there.

    Args:
        adapter: Reads the model.
        inputs: One batch.
        hook_name: As in `activations_at`.
        replace: From the activations to others of the same shape; None leaves them.

    Raises:
        UnknownHookError: The model has no such place.
        InputError: The place is passed never or twice in a forward pass, or gives no tensor.
    """
    activations: list[Tensor] = []

    def watch(module: nn.Module, args: tuple, output: Any) -> Any:
        first = first_tensor(output, hook_name)
        activations.append(first.detach())
        return None if replace is None else with_first(output, replace(first))

    with held_still(adapter.module), _hooked(find_place(adapter, hook_name), watch):
        output = adapter.run(*inputs.args, **inputs.kwargs)
    if len(activations) != 1:
        raise InputError(
            f"{hook_name!r} was passed {len(activations)} times in one forward pass. Name a place that is passed once: hook "
            "points such as hook_result or hook_q_input are skipped unless the model is told to use them."
        )
    return output, activations[0]


def find_place(adapter: Adapter, hook_name: str) -> nn.Module:
    """Find the module that a place's name means.

    Raises:
        UnknownHookError: There is none.
    """
    places = {name: module for name, module in adapter.hook_points().items() if name}
    if hook_name not in places:
        raise UnknownHookError(
            f"No place {hook_name!r} in this {type(adapter.model).__name__}. Nearest: {nearest(hook_name, places)}. Hook "
            "points of TransformerLens and names of submodules are accepted."
        )
    return places[hook_name]


@contextmanager
def _hooked(module: nn.Module, hook: Callable) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _samples(adapter: Adapter, rows: ModelInputs, hook_name: str, per_position: bool | None) -> Tensor:
    acts = run_replaced(adapter, rows, hook_name, None)[1]
    splits_positions = has_positions(acts, rows) if per_position is None else per_position
    if not splits_positions:
        return acts.cpu()
    if not has_positions(acts, rows):
        raise InputError(
            f"Activations at {hook_name!r} have shape {tuple(acts.shape)}, and the tokens {tuple(rows.tokens.shape)}. Name "
            "a place that has an activation for each token: [batch, pos, …]."
            if rows.tokens is not None
            else f"Activations at {hook_name!r} belong to inputs, not to positions of tokens."
        )
    return (acts.flatten(0, 1) if rows.sample_mask is None else acts[rows.sample_mask]).cpu()


def first_tensor(output: Any, hook_name: str) -> Tensor:
    """Take the tensor that a place gives, or the first one of a tuple.

    Raises:
        InputError: It gives no tensor.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise InputError(
            f"{hook_name!r} gives a {type(output).__name__}. Name a place that gives a tensor, or a tuple that "
            "starts with one."
        )
    return first


def with_first(output: Any, first: Tensor) -> Any:
    """Put another first tensor into what a place gives."""
    if isinstance(output, Tensor):
        return first
    make = getattr(output, "_make", type(output))  # a named tuple takes its fields one by one
    return make([first, *output[1:]])
