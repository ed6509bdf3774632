"""Adding a feature for some sequences or positions only: at the layer's output, where the weight itself stays as it is."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from param_features.errors import InputError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine, WithinForward, acting_at, at_least_float32, by_row, transposed
from param_features.gradients.rules import required_rule
from param_features.machine import full_precision, uncompiled
from param_features.params import Tap, hooked

Where = Bool[Tensor, "batch"] | Bool[Tensor, "batch pos"]


@contextmanager
def added_at(engine: GradientEngine, direction: LowRank, where: Where) -> Iterator[None]:
    """Run the model as if a direction were added to its parameters, for the marked sequences or positions alone.

    What a weight's change ΔW adds to its layer's output is the transpose of the layer rule applied to ΔW (ΔW a for a
    matrix), so it is added there. No weight is touched. Cost: one small product per call of the layer.

    Args:
        engine: Knows where each parameter's input and output can be tapped.
        direction: One direction, δ and all.
        where: True where it acts: [batch], or [batch pos] in a model of tokens.

    Raises:
        InputError: Inside the block, the model is run on a batch of another shape.
    """
    with uncompiled(), ExitStack() as hooks, hooked():
        for name, taps in engine.routes.taps.items():
            for tap in taps:
                for handle in _hooked(tap, direction.factors[name], where):
                    hooks.callback(handle.remove)
        yield


def _hooked(tap: Tap, factors: tuple[Tensor, Tensor], where: Where) -> Iterator[WithinForward | RemovableHandle]:
    """Add the direction's part to the tapped output, computed from the tapped input of the same pass."""

    def act(source: Tensor, output: Tensor) -> Tensor:
        change = _change(tap, source, output, factors, len(where))
        return output + (change * _spread(where, output)).to(output.dtype)

    return acting_at(tap, act)


def _change(tap: Tap, source: Tensor, output: Tensor, factors: tuple[Tensor, Tensor], n_rows: int) -> Tensor:
    """The change of the output: ∂⟨rule(source, δ), v⟩/∂δ, which is linear in δ."""
    rule = required_rule(tap.rule, tap.attribute)
    with full_precision(), torch.inference_mode(False):
        source = source.clone() if source.is_inference() else source
        source = by_row(at_least_float32(source) if source.is_floating_point() else source, n_rows)
        left, right = (factor.to(source.device) for factor in factors)
        if source.is_floating_point():
            left, right = left.to(source.dtype), right.to(source.dtype)

        def overlap(delta: Tensor) -> Tensor:
            gradient = rule(tap.layer, source, by_row(delta, n_rows))
            gradient = gradient if tap.rows is None else gradient.rows(tap.rows.to(delta.device))
            return gradient.inner(left, right).sum()

        return transposed(overlap, torch.zeros(output.shape, dtype=left.dtype, device=output.device))


def _spread(where: Where, output: Tensor) -> Tensor:
    """The mask with the output's axes: [batch pos ...], batch and positions perhaps merged into one."""
    where = where.to(output.device)
    merged = where.numel()
    if where.dim() == 2 and output.shape[:2] != where.shape and output.shape[:1] == (merged,):
        where = where.flatten()
    elif where.dim() == 1 and len(output) > merged and len(output) % merged == 0:
        where = where.repeat_interleave(len(output) // merged)
    if output.shape[: where.dim()] != where.shape:
        raise InputError(
            f"where= has shape {tuple(where.shape)}, and the model is run on {tuple(output.shape[: where.dim()])}. Run it "
            "on the sequences that where= speaks of; one truth value for each sequence, [batch], suits every length."
        )
    return where.reshape(*where.shape, *(1,) * (output.dim() - where.dim()))
