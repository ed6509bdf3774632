"""Activations of every sample: by one backward pass per position, or one forward-mode product per feature."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.directions import LowRank
from param_features.divergence import CustomDivergence, Divergence
from param_features.errors import SettingError
from param_features.gradients import (
    AgainstMean,
    CotangentOf,
    GradientEngine,
    Gradients,
    at_least_float32,
    check_finite_output,
    held_still,
    output_changes,
)
from param_features.inputs import ModelInputs
from param_features.typed import typed

Route = Literal["auto", "jvp", "vjp"]

_POSITIONS_PER_BATCH = 4096


@typed
def activations(
    engine: GradientEngine,
    v_in: LowRank,
    divergence: Divergence,
    references: Float[Tensor, "n_references d_output"],
    inputs: ModelInputs,
    *,
    route: str = "auto",
) -> Float[Tensor, "*sample feature"]:
    """V_in,k · ∇_W D for every sample, averaged over references.

    Cost: VJP, one backward pass of the layers above the parameters for each position; JVP, one forward-mode pass for each
    feature. `"auto"` takes the VJP unless there are more positions than features. Custom divergences multiply either
    by the number of references; for the others the mean of the cotangents is the cotangent of the mean.

    Args:
        engine: Takes the gradients.
        v_in: The features' encoder.
        divergence: D.
        references: What outputs are compared with, in the divergence's reference space.
        inputs: Every row is measured.
        route: Which of the two.

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
        route = "jvp" if n_pos > v_in.n_features else "vjp"
    take = _by_jvp if route == "jvp" else _by_vjp
    size = max(1, _POSITIONS_PER_BATCH // n_pos)
    starts = range(0, len(inputs), size)
    parts = [take(engine, v_in, divergence, references, inputs.rows(slice(start, start + size))).cpu() for start in starts]
    found = torch.cat(parts)
    if inputs.mask is not None and engine.per_position:
        found = torch.where(inputs.mask.cpu().unsqueeze(-1), found, torch.zeros((), dtype=found.dtype))
    return found if engine.per_position else found.squeeze(1)


def mean_cotangent(divergence: Divergence, output: Tensor, references: Tensor) -> Tensor:
    """The mean over references of ∂D/∂f. The named divergences are affine in their reference: one evaluation."""
    if not isinstance(divergence, CustomDivergence):
        return divergence.cotangent(output, references.mean(0).to(output).expand_as(output))
    return torch.stack([divergence.cotangent(output, row.to(output).expand_as(output)) for row in references]).mean(0)


def mean_cotangents(divergence: Divergence, references: Tensor) -> CotangentOf:
    """`mean_cotangent` as an engine asks for it."""
    if not isinstance(divergence, CustomDivergence):
        return AgainstMean(divergence, references)
    return lambda output, *_: mean_cotangent(divergence, output, references)


def _by_vjp(
    engine: GradientEngine, v_in: LowRank, divergence: Divergence, references: Tensor, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    n_pos = inputs.n_pos if engine.per_position else 1
    positions = torch.arange(n_pos).expand(len(inputs), n_pos)
    columns: list[Tensor] = []

    def consume(_: int, gradients: Gradients) -> None:
        with torch.no_grad():
            columns.append(v_in.inner(gradients))

    engine.each_slot(inputs, positions, mean_cotangents(divergence, references), consume)
    return torch.stack(columns, 1)


def _by_jvp(
    engine: GradientEngine, v_in: LowRank, divergence: Divergence, references: Tensor, inputs: ModelInputs
) -> Float[Tensor, "batch pos feature"]:
    with held_still(engine.adapter.module), torch.no_grad():
        output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    check_finite_output(output if inputs.mask is None or not engine.per_position else output[inputs.mask])
    flat = output.flatten(0, 1) if engine.per_position else output.flatten(1)
    cotangent = mean_cotangent(divergence, flat, references).reshape(output.shape)
    changes = output_changes(engine, v_in.materialize(), inputs, lambda change: _per_sample(engine, cotangent * change))
    return at_least_float32(changes.movedim(0, -1))


def _per_sample(engine: GradientEngine, product: Tensor) -> Float[Tensor, "batch pos"]:
    return product.sum(-1) if engine.per_position else product.flatten(1).sum(1, keepdim=True)
