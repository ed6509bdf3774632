"""Outputs of single samples, without gradients."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.gradients.engine import GradientEngine
from param_features.params import held_still
from param_features.problem import ModelInputs

_ROWS = 16


@torch.no_grad()
def outputs_at(
    engine: GradientEngine, inputs: ModelInputs, positions: Int[Tensor, " batch"]
) -> Float[Tensor, "batch d_output"]:
    """The output of one sample of each row, in float32 at least; positions count where a sample is one.

    Cost: a forward pass of the rows, a few at a time.
    """
    outputs = []
    with held_still(engine.adapter.module):
        for part in torch.arange(len(inputs)).split(_ROWS):
            batch = inputs.rows(part)
            output = engine.adapter.run(*batch.args, **batch.kwargs)
            if engine.per_position:
                output = output[torch.arange(len(output), device=output.device), positions[part].to(output.device)]
            outputs.append(output.flatten(1).float() if output.dtype != torch.float64 else output.flatten(1))
    return torch.cat(outputs)
