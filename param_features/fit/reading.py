"""What is read from every sample's gradient: by one backward pass per position, or one forward-mode product per feature."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.fit.formats.low_rank import LowRank
from param_features.gradients import (
    AgainstMean,
    CotangentOf,
    GradientEngine,
    Gradients,
    at_least_float32,
    check_finite_output,
    has_forward_mode,
    output_changes,
)
from param_features.machine import typed
from param_features.params import held_still
from param_features.problem import ModelInputs, Question

Route = Literal["auto", "jvp", "vjp"]

_POSITIONS_PER_BATCH = 4096


@typed
def activations(
    engine: GradientEngine,
    directions: LowRank,
    question: Question,
    inputs: ModelInputs,
    *,
    route: str = "auto",
) -> Float[Tensor, "*sample feature"]:
    """⟨∇_W D, v_k⟩ for every sample, averaged over references; activations where the directions are V_in.

    Cost: VJP, one backward pass of the layers above the parameters for each position; JVP, one forward-mode pass for each
    feature. `"auto"` takes the VJP unless there are more positions than features and forward mode runs through the model.
    Custom divergences multiply either by the number of references; for the others the mean of the cotangents is the
    cotangent of the mean.

    Args:
        engine: Takes the gradients.
        directions: The v_k.
        question: D, and what outputs are compared with.
        inputs: Every row is measured.
        route: Which of the two. Where a layer has no forward mode, `"jvp"` is computed by two backward passes.

    Returns:
        [batch pos feature] for token models, [batch feature] otherwise; signed, in divergence units per unit step, 0 at
        padding. On the CPU.

    Raises:
        SettingError: `route` is unknown.
        NonFiniteError: The output holds NaN or infinity.
    """
    n_pos = inputs.n_pos if engine.per_position else 1
    if route not in ("auto", "jvp", "vjp"):
        raise SettingError(f"route={route!r} is unknown. Accepted: 'auto', 'jvp', 'vjp'.")
    if route == "auto":
        route = "jvp" if n_pos > directions.n_features and has_forward_mode(engine, inputs) else "vjp"
    take = _by_jvp if route == "jvp" else _by_vjp
    size = max(1, _POSITIONS_PER_BATCH // n_pos)
    starts = range(0, len(inputs), size)
    parts = [take(engine, directions, question, inputs.rows(slice(start, start + size))).cpu() for start in starts]
    acts = torch.cat(parts)
    if inputs.mask is not None and engine.per_position:
        acts = torch.where(inputs.mask.cpu().unsqueeze(-1), acts, torch.zeros((), dtype=acts.dtype))
    return acts if engine.per_position else acts.squeeze(1)


def mean_cotangents(question: Question) -> CotangentOf:
    """The mean of ∂D/∂f over references, as an engine asks for it."""
    if question.is_affine:
        return AgainstMean(question.divergence, question.references)
    return lambda output, *_: question.cotangent(output)


def _by_vjp(
    engine: GradientEngine, directions: LowRank, question: Question, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    n_pos = inputs.n_pos if engine.per_position else 1
    positions = torch.arange(n_pos).expand(len(inputs), n_pos)
    columns: list[Tensor] = []

    def consume(_: int, gradients: Gradients) -> None:
        with torch.no_grad():
            columns.append(directions.inner(gradients))

    engine.each_slot(inputs, positions, mean_cotangents(question), consume)
    return torch.stack(columns, 1)


def _by_jvp(
    engine: GradientEngine, directions: LowRank, question: Question, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    with held_still(engine.adapter.module), torch.no_grad():
        output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    check_finite_output(output if inputs.mask is None or not engine.per_position else output[inputs.mask])
    flat = output.flatten(0, 1) if engine.per_position else output.flatten(1)
    cotangent = question.cotangent(flat).reshape(output.shape)
    changes = output_changes(
        engine, directions.materialize(), inputs, lambda change: _per_sample(engine, cotangent * change)
    )
    return at_least_float32(changes.movedim(0, -1))


def _per_sample(engine: GradientEngine, product: Tensor) -> Float[Tensor, "batch pos"]:
    return product.sum(-1) if engine.per_position else product.flatten(1).sum(1, keepdim=True)


Reading = Callable[[Gradients], Tensor]
"""From a batch of gradients to [sample feature]."""


@torch.no_grad()
def read_gradients(
    engine: GradientEngine,
    question: Question,
    inputs: ModelInputs,
    readings: Mapping[str, Reading],
) -> dict[str, Float[Tensor, "row pos feature"]]:
    """Every reading of every sample's gradient, D's cotangent averaged over the references as in activations.

    Cost: one backward pass per position, whatever the number of readings.

    Args:
        engine: Takes the gradients.
        question: D, and what outputs are compared with.
        inputs: Every row is read; pos is 1 when a sample is an input.
        readings: What to take from the gradients, by name.
    """
    n_pos = inputs.n_pos if engine.per_position else 1
    size = max(1, _POSITIONS_PER_BATCH // n_pos)
    parts: dict[str, list[Tensor]] = {name: [] for name in readings}
    for start in range(0, len(inputs), size):
        rows, columns = inputs.rows(slice(start, start + size)), {name: [] for name in readings}

        def consume(_: int, gradients: Gradients, columns: dict[str, list[Tensor]] = columns) -> None:
            for name, reading in readings.items():
                columns[name].append(reading(gradients).detach().cpu())

        engine.each_slot(
            rows,
            torch.arange(n_pos).expand(len(rows), n_pos),
            mean_cotangents(question),
            consume,
        )
        for name, column in columns.items():
            parts[name].append(torch.stack(column, 1))
    return {name: torch.cat(columns) for name, columns in parts.items()}
