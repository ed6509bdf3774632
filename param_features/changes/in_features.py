"""A change of the weights, told in features: a gradient, an optimiser's step, a checkpoint's difference, a LoRA."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.changes.lora import is_lora, lora_change
from param_features.changes.weights import ParamMatrices, chosen_matrices, read_state
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted
from param_features.gradients import Dense, GradientEngine
from param_features.machine import public
from param_features.measure import random_like


@dataclass(frozen=True, eq=False)
class Coordinates:
    """A change Δ of the decomposed parameters, in features' coordinates.

    Attributes:
        steps: c, with Σ_k c_k v_k the point of the features' span nearest to Δ; in units of the weights. Directions that
            are nearly parallel may hold large steps of opposite sign.
        overlaps: ⟨Δ, v_k⟩: how far Δ goes along each direction alone.
        norm: ‖Δ‖.
        share: ‖Σ_k c_k v_k‖² / ‖Δ‖², 0 to 1; NaN where Δ is 0.
        share_random: The share for as many random directions of the features' shapes and ranks. A share that this one
            matches says nothing.
    """

    steps: Float[Tensor, " feature"]
    overlaps: Float[Tensor, " feature"]
    norm: float
    share: float
    share_random: float

    @public
    def top(self, n: int = 10) -> list[tuple[int, float]]:
        """Features with the largest overlaps, and these, largest first."""
        order = self.overlaps.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(k, float(self.overlaps[k])) for k in order]

    def __repr__(self) -> str:
        """The share beside the random one, and the largest overlaps."""
        largest = ", ".join(f"{k}: {overlap:+.3g}" for k, overlap in self.top(5))
        return (
            f"Coordinates: ‖Δ‖ {self.norm:.4g}, of whose square {self.share:.1%} lie in the span of {len(self.steps)} "
            f"features (random directions {self.share_random:.1%}); largest overlaps {largest}"
        )


class Projection(NamedTuple):
    """What of a change Δ lies in the span of directions.

    Attributes:
        overlaps: ⟨Δ, v_k⟩.
        steps: c, with Σ_k c_k v_k the point of the span nearest to Δ.
        share: ‖Σ_k c_k v_k‖² / ‖Δ‖²; NaN where Δ is 0.
    """

    overlaps: Float[Tensor, " feature"]
    steps: Float[Tensor, " feature"]
    share: float


@torch.no_grad()
def coordinates(features: Fitted, change: Any, *, since: Any = None, seed: int = 0) -> Coordinates:
    """What a change of the weights is in features' coordinates; see `ParamFeatures.coordinates`."""
    engine = features.bound_engine("coordinates")
    delta = read_change(engine, change, since)
    random = random_like(features.v_out, torch.Generator().manual_seed(seed))
    inside = projected(features.v_out, delta)
    norm = float(torch.stack([matrix.square().sum() for matrix in delta.values()]).sum().sqrt())
    return Coordinates(inside.steps, inside.overlaps, norm, inside.share, projected(random, delta).share)


def projected(directions: LowRank, delta: ParamMatrices) -> Projection:
    """Project a change onto the span of directions, in float64 on the CPU.

    Cost: an eigendecomposition of the Gram matrix.
    """
    wide = directions.map(lambda tensor: tensor.detach().double().cpu())
    overlaps = wide.inner({name: Dense(delta[name].unsqueeze(0)) for name in wide.factors})[0]
    steps = torch.linalg.pinv(wide.gram(), hermitian=True, rtol=1e-6) @ overlaps
    square = torch.stack([matrix.square().sum() for matrix in delta.values()]).sum()
    share = float((steps @ overlaps) / square) if square > 0 else float("nan")
    return Projection(overlaps, steps, share)


def read_change(engine: GradientEngine, change: Any, since: Any) -> ParamMatrices:
    """What the user means by a change, as matrices of the decomposed parameters.

    Args:
        engine: Knows the parameters.
        change: Tensors by parameter name, each a change; or weights, with `since`; or a LoRA: a `peft.PeftModel` or the
            folder of its files.
        since: The weights before, for a change given as the weights after.
    """
    if since is not None:
        after, before = (chosen_matrices(engine, read_state(weights)) for weights in (change, since))
        return {name: after[name] - before[name] for name in after}
    if is_lora(change):
        return lora_change(engine, change)
    return chosen_matrices(engine, read_state(change))
