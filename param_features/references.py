"""The references that activations average over, collected once from the data."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.divergence import Divergence
from param_features.gradients import GradientEngine, outputs_at
from param_features.gradients.harvest import draw_positions
from param_features.inputs import ModelInputs
from param_features.typed import typed

_MAX_ROWS = 256


@typed
@torch.no_grad()
def collect_references(
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    reference: str | Tensor,
    given: Tensor | None,
    n: int,
    generator: torch.Generator,
) -> Float[Tensor, "n_references d_output"]:
    """Outputs of `n` samples drawn from the data, as references; their mean, or the user's own, where that was asked for.

    `"label"` takes outputs from the data as `"sample"` does: labels drawn from the model's own softmax average to it, so
    activations against them would average to zero.
    Cost: forward passes of at most 256 rows.
    """
    if given is not None:
        return given
    rows = torch.randperm(len(data), generator=generator)[: _MAX_ROWS if reference == "mean" else n]
    outputs = divergence.to_reference(_outputs(engine, data, rows, generator))
    if reference == "uniform":
        return torch.full_like(outputs[:1], 1 / outputs.shape[1])
    if reference == "mean":
        return outputs.mean(0, keepdim=True)
    return outputs


def _outputs(engine: GradientEngine, data: ModelInputs, rows: Tensor, generator: torch.Generator) -> Tensor:
    """The output of one sample of each row, a few rows at a time."""
    found = []
    for part in rows.split(16):
        batch = data.rows(part)
        positions = draw_positions(batch, 1, generator)[:, 0] if engine.per_position else batch.last_positions
        found.append(outputs_at(engine, batch, positions))
    return torch.cat(found)
