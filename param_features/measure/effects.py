"""What a change of the weights does to each sample's output."""

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients import GradientEngine
from param_features.params import held_still
from param_features.problem import KL, Divergence, ModelInputs, SquaredError

Deltas = Mapping[str, Float[Tensor, "*shape"]]
Read = Callable[[Tensor, Tensor], Tensor]
"""(outputs, outputs with the change), [sample d_output] each, to [sample ...]."""

_OUTPUT_NUMBERS = 2**24


@torch.no_grad()
def read_effects(
    engine: GradientEngine, inputs: ModelInputs, changes: Iterable[Deltas], read: Read
) -> Float[Tensor, "change sample ..."]:
    """Read every sample's output with and without each change of the weights; padding is left out.

    The weights themselves stay as they are: the model is run with others in their place. Cost: one forward pass per change,
    and one without. Memory: two outputs of as many rows as have 16 million numbers.

    Args:
        engine: Runs the model.
        inputs: Every real position of a model of tokens is a sample, otherwise every input.
        changes: What is added to the parameters, by name.
        read: What is taken from the outputs; kept on the CPU.
    """
    changes = list(changes)
    readings: list[list[Tensor]] = [[] for _ in changes]
    with held_still(engine.adapter.module):
        for start in range(0, len(inputs), _rows_at_once(engine, inputs)):
            rows = inputs.rows(slice(start, start + _rows_at_once(engine, inputs)))
            base = outputs_of(engine, rows)
            for change, parts in zip(changes, readings, strict=True):
                with engine.subset.replaced(_changed(engine, change)):
                    parts.append(read(base, outputs_of(engine, rows)).cpu())
    return torch.stack([torch.cat(parts) for parts in readings])


def outputs_of(engine: GradientEngine, inputs: ModelInputs) -> Float[Tensor, "sample d_output"]:
    """The output of every real sample of a batch, row by row.

    In float64 where the device has it: divergences of nearly equal outputs are small differences of large numbers.
    """
    output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    output = output.float() if output.device.type == "mps" else output.double()
    if not engine.per_position:
        return output.flatten(1)
    return output.flatten(0, 1) if inputs.sample_mask is None else output[inputs.sample_mask.to(output.device)]


def distance(divergence: Divergence) -> Callable[[Tensor, Tensor], Float[Tensor, " sample"]]:
    """How far outputs have moved: KL(before ‖ after) in nats where the divergence is KL, else the summed squared change."""
    measure = divergence if isinstance(divergence, KL) else SquaredError()
    return lambda before, after: measure.value(after, measure.to_reference(before))


def _changed(engine: GradientEngine, change: Deltas) -> dict[str, Tensor]:
    """The parameters with the change, rounded as they would be stored."""
    changed = {}
    for view in engine.subset.views:
        if view.name in change:
            exact = torch.promote_types(view.tensor.dtype, torch.float32)
            changed[view.name] = (view.tensor.detach().to(exact) + change[view.name].to(exact)).to(view.tensor.dtype)
    return changed


def _rows_at_once(engine: GradientEngine, inputs: ModelInputs) -> int:
    per_row = (inputs.n_pos if engine.per_position else 1) * (engine.adapter.d_vocab or 1024)
    return max(1, _OUTPUT_NUMBERS // per_row)
