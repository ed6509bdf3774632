"""Which outputs a feature moves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine, output_changes
from param_features.machine import typed
from param_features.problem import ModelInputs


@dataclass(frozen=True)
class TopLogits:
    """Output coordinates that a step along a feature moves most, with their change per unit step.

    Attributes:
        up: Strongest rises first, (token or output, change).
        down: Strongest falls first.
    """

    up: tuple[tuple[str, float], ...]
    down: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """Both lists on two lines."""
        rows = (("up", self.up), ("down", self.down))
        return "\n".join(f"{title:<5}" + "  ".join(f"{token!r} {value:+.2f}" for token, value in row) for title, row in rows)


def top_logits(
    engine: GradientEngine,
    direction: LowRank,
    inputs: ModelInputs,
    positions: Int[Tensor, " batch"],
    *,
    n: int,
) -> TopLogits:
    """Mean change of the outputs per unit step along one V_out row, over given samples; logits less their mean.

    Adding one number to every logit changes no probability, so the mean over the vocabulary is taken off.
    Cost: one forward-mode pass over the samples' sequences.
    """
    change = mean_change(engine, direction, inputs, positions)
    order = change.argsort(descending=True)
    up, down = order[:n].tolist(), order.flip(0)[:n].tolist()
    is_of_tokens = engine.per_position and engine.adapter.d_vocab in (None, len(change))
    names = engine.adapter.to_strings if is_of_tokens else lambda ids: [str(index) for index in ids]
    return TopLogits(
        tuple(zip(names(up), change[up].tolist(), strict=True)), tuple(zip(names(down), change[down].tolist(), strict=True))
    )


@typed
def mean_change(
    engine: GradientEngine, direction: LowRank, inputs: ModelInputs, positions: Int[Tensor, " batch"]
) -> Float[Tensor, " d_output"]:
    """J v averaged over one sample of every row."""
    change = output_changes(engine, direction.materialize(), inputs)[0]
    if not engine.per_position:
        return change.flatten(1).mean(0).cpu()
    mean = change[torch.arange(len(change)), positions.to(change.device)].mean(0).cpu()
    return mean - mean.mean()
