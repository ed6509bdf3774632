"""The losses of single tokens through training, and the few directions in which they change together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.development.checkpoints import TrainingStep, check_checkpoints, lent, read_steps
from param_features.development.in_context import token_losses
from param_features.errors import SampleCountError, SettingError
from param_features.machine import own_modes, public
from param_features.params import adapter_for


@dataclass(frozen=True, eq=False)
class LossTrajectory:
    """Every checkpoint as a vector of the losses of many tokens, and the principal components of these vectors.

    Attributes:
        steps: Of the checkpoints, rising.
        losses: Nats; NaN where padding is involved.
        components: Coordinates of each checkpoint along the principal directions, around the mean over checkpoints; nats.
        directions: Unit vectors over tokens; 0 at padding. Each has the sign that makes its largest entry positive.
        explained: Share of the variance over checkpoints that each direction holds.
    """

    steps: tuple[TrainingStep, ...]
    losses: Float[Tensor, "checkpoint row pos"]
    components: Float[Tensor, "checkpoint component"]
    directions: Float[Tensor, "component row pos"]
    explained: Float[Tensor, " component"]

    def __repr__(self) -> str:
        """How much of the variance the directions hold."""
        shares = ", ".join(f"{share:.1%}" for share in self.explained.tolist())
        return (
            f"LossTrajectory of {len(self.steps)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}; variance {shares}"
        )


@public
@own_modes()
def loss_trajectory(
    model: Any, checkpoints: Any, tokens: Any, *, steps: Sequence[TrainingStep] | None = None, n_components: int = 2
) -> LossTrajectory:
    """The loss of every token at every checkpoint, and its principal components over training.

    Where training turns from learning one thing to another, so does the path of the components.

    Each checkpoint's weights are put into the model and taken out again; it ends bit for bit as it was.

    Cost: a forward pass for each checkpoint, a copy of the weights, and a singular value decomposition of all losses.

    Args:
        model: Of the checkpoints' kind.
        checkpoints: As in `pf.track`: a list in the order of training, or {step: checkpoint}.
        tokens: As in `pf.development.token_losses`.
        steps: As in `pf.track`.
        n_components: Directions to keep.

    Raises:
        SampleCountError: There are fewer than two checkpoints.
        SettingError: `n_components` is not from 1 to the number of checkpoints; or steps do not rise.
        UnknownParameterError: A checkpoint lacks a parameter.
        InputError: Rows are too short, or the model cannot take them; or what is given is no checkpoint, or of other shapes.
        NonFiniteError: A loss is NaN or infinite.
        StoreError: A file cannot be read.

    Source: Olsson et al. 2022 (2209.11895), "Per-token loss analysis"; PCA by singular values.
    """
    listed, adapter = read_steps(checkpoints, steps), adapter_for(model)
    if len(listed) < 2:
        raise SampleCountError("One checkpoint has no path. Give two or more.")
    if not 1 <= n_components <= len(listed):
        raise SettingError(f"n_components={n_components}: accepted are 1 to {len(listed)}, the number of checkpoints.")
    check_checkpoints(adapter, listed)
    parts = []
    with lent(adapter) as load:
        for step, checkpoint in listed:
            load(checkpoint, step)
            parts.append(token_losses(model, tokens))
    losses = torch.stack(parts)
    components, directions, explained = principal_components(losses.flatten(1).nan_to_num(0.0), n_components)
    return LossTrajectory(
        tuple(step for step, _ in listed), losses, components, directions.unflatten(1, losses.shape[1:]), explained
    )


def principal_components(
    vectors: Float[Tensor, "vector d"], n: int
) -> tuple[Float[Tensor, "vector n"], Float[Tensor, "n d"], Float[Tensor, " n"]]:
    """Coordinates around the mean, unit directions, and shares of the variance (NaN where all vectors are the same)."""
    wide = vectors.double()
    left, sizes, right = torch.linalg.svd(wide - wide.mean(0), full_matrices=False)
    largest = right.abs().argmax(1, keepdim=True)
    sign = right.gather(1, largest).sign()
    components = left * sizes * sign[:, 0]
    return components[:, :n], (right * sign)[:n], (sizes.square() / sizes.square().sum())[:n]
