"""Several readings of every sample's gradient in one go."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.divergence import Divergence
from param_features.gradients import GradientEngine, Gradients
from param_features.inputs import ModelInputs
from param_features.measure.activations import mean_cotangents

Reading = Callable[[Gradients], Tensor]
"""From a batch of gradients to [sample feature]."""

_POSITIONS_PER_BATCH = 4096


@torch.no_grad()
def read_gradients(
    engine: GradientEngine,
    divergence: Divergence,
    references: Float[Tensor, "n_references d_output"],
    inputs: ModelInputs,
    readings: Mapping[str, Reading],
) -> dict[str, Float[Tensor, "row pos feature"]]:
    """Every reading of every sample's gradient, D's cotangent averaged over the references as in activations.

    Cost: one backward pass per position, whatever the number of readings.

    Args:
        engine: Takes the gradients.
        divergence: D.
        references: What outputs are compared with.
        inputs: Every row is read; pos is 1 when a sample is an input.
        readings: What to take from the gradients, by name.
    """
    n_pos = inputs.n_pos if engine.per_position else 1
    size = max(1, _POSITIONS_PER_BATCH // n_pos)
    found: dict[str, list[Tensor]] = {name: [] for name in readings}
    for start in range(0, len(inputs), size):
        rows, columns = inputs.rows(slice(start, start + size)), {name: [] for name in readings}

        def consume(_: int, gradients: Gradients, columns: dict[str, list[Tensor]] = columns) -> None:
            for name, read in readings.items():
                columns[name].append(read(gradients).detach().cpu())

        engine.each_slot(
            rows,
            torch.arange(n_pos).expand(len(rows), n_pos),
            mean_cotangents(divergence, references),
            consume,
        )
        for name, column in columns.items():
            found[name].append(torch.stack(column, 1))
    return {name: torch.cat(parts) for name, parts in found.items()}
