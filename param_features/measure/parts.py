"""What each parameter adds to an activation."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit import activations
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine
from param_features.machine import typed
from param_features.problem import ModelInputs, Question


@typed
def activation_parts(
    engine: GradientEngine,
    v_in: LowRank,
    question: Question,
    inputs: ModelInputs,
) -> Float[Tensor, "*sample param feature"]:
    """V_in,k · ∇_W D with V_in restricted to one parameter after another; the sum over parameters is the activation.

    Cost: that of `activations` for each parameter.
    """
    parts = [activations(engine, _only(v_in, name), question, inputs) for name in v_in.factors]
    return torch.stack(parts, -2)


def _only(directions: LowRank, kept: str) -> LowRank:
    """The same directions, zero in every parameter but one."""
    return LowRank(
        {
            name: (left if name == kept else torch.zeros_like(left), right)
            for name, (left, right) in directions.factors.items()
        }
    )
