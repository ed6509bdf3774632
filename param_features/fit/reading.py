"""What is read from every sample's gradient: by one backward pass per position, or one forward-mode product per feature."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
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

    Cost: VJP, one backward pass of the layers above the parameters for each position that is a sample; JVP, one forward-mode
    pass for each feature. `"auto"` takes the VJP unless there are more such positions than features and forward mode runs
    through the model. Custom divergences multiply either by the number of references; for the others the mean of the
    cotangents is the cotangent of the mean.

    Args:
        engine: Takes the gradients.
        directions: The v_k.
        question: D, and what outputs are compared with.
        inputs: Every row is measured.
        route: Which of the two. Where a layer has no forward mode, `"jvp"` is computed by two backward passes.

    Returns:
        [batch pos feature] where outputs have positions, [batch feature] otherwise; signed, in divergence units per unit
        step, 0 at padding and at positions that are no samples. On the CPU.

    Raises:
        SettingError: `route` is unknown.
        NonFiniteError: The output holds NaN or infinity.
    """
    n_pos = inputs.n_pos if engine.per_position else 1
    n_slots = _slots(engine, inputs).shape[1]
    if route not in ("auto", "jvp", "vjp"):
        raise SettingError(f"route={route!r} is unknown. Accepted: 'auto', 'jvp', 'vjp'.")
    if route == "auto":
        route = "jvp" if n_slots > directions.n_features and has_forward_mode(engine, inputs) else "vjp"
    take = _by_jvp if route == "jvp" else _by_vjp
    size = max(1, _POSITIONS_PER_BATCH // n_pos)
    starts = range(0, len(inputs), size)
    parts = [take(engine, directions, question, inputs.rows(slice(start, start + size))).cpu() for start in starts]
    acts = torch.cat(parts)
    if inputs.sample_mask is not None and engine.per_position:
        acts = torch.where(inputs.sample_mask.cpu().unsqueeze(-1), acts, torch.zeros((), dtype=acts.dtype))
    return acts if engine.per_position else acts.squeeze(1)


def mean_cotangents(question: Question) -> CotangentOf:
    """The mean of ∂D/∂f over references, as an engine asks for it."""
    if question.is_affine:
        return AgainstMean(question.divergence, question.references)
    return lambda output, *_: question.cotangent(output)


def _by_vjp(
    engine: GradientEngine, directions: LowRank, question: Question, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    positions = _slots(engine, inputs)
    columns: list[Tensor] = []

    def consume(_: int, gradients: Gradients) -> None:
        with torch.no_grad():
            columns.append(directions.inner(gradients))

    engine.each_slot(inputs, positions, mean_cotangents(question), consume)
    return _at_positions(torch.stack(columns, 1), positions, inputs)


def _slots(engine: GradientEngine, inputs: ModelInputs) -> Int[Tensor, "batch slot"]:
    """The positions of each row that are read: all, or as many as the row with the most samples has, samples first."""
    n_pos = inputs.n_pos if engine.per_position else 1
    if inputs.samples is None or not engine.per_position:
        return torch.arange(n_pos).expand(len(inputs), n_pos)
    samples = inputs.samples.cpu()
    return (~samples).long().argsort(dim=1, stable=True)[:, : max(1, int(samples.sum(1).max()))]


def _at_positions(
    values: Float[Tensor, "batch slot feature"], positions: Int[Tensor, "batch slot"], inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    """What was read of some positions, at these; zero at the others."""
    if inputs.samples is None:
        return values
    spread = values.new_zeros(len(values), inputs.n_pos, values.shape[2])
    return spread.scatter_(1, positions.to(values.device).unsqueeze(2).expand(values.shape), values)


def _by_jvp(
    engine: GradientEngine, directions: LowRank, question: Question, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    with held_still(engine.adapter.module), torch.no_grad():
        output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    is_sample = inputs.sample_mask if engine.per_position else None
    check_finite_output(output if is_sample is None else output[is_sample])
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

    Cost: one backward pass per position that is a sample, whatever the number of readings.

    Args:
        engine: Takes the gradients.
        question: D, and what outputs are compared with.
        inputs: Every row is read; pos is 1 when a sample is an input, and what is no sample is zero or means nothing.
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

        positions = _slots(engine, rows)
        engine.each_slot(rows, positions, mean_cotangents(question), consume)
        for name, column in columns.items():
            parts[name].append(_at_positions(torch.stack(column, 1), positions, rows))
    return {name: torch.cat(columns) for name, columns in parts.items()}
