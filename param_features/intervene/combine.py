"""Weights moved along directions, as tensors that gradients flow through."""

from collections.abc import Mapping

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.gradients import at_least_float32
from param_features.params import ParamSubset


def combined(directions: LowRank, steps: Float[Tensor, " feature"]) -> dict[str, Float[Tensor, "d_out d_in"]]:
    """Σ_k δ_k v_k as matrices, by parameter; differentiable in δ. Cost: feature · rank · |W|."""
    return {
        name: einsum(left * steps.to(left)[:, None, None], right, "feature o rank, feature i rank -> o i")
        for name, (left, right) in directions.factors.items()
    }


def moved(subset: ParamSubset, matrices: Mapping[str, Float[Tensor, "d_out d_in"]]) -> dict[str, Tensor]:
    """W + matrix for each parameter, in its shape and dtype, for `ParamSubset.replaced`; the sum is taken in float32."""
    weights = {}
    for view in subset.views:
        weight = view.tensor.detach()
        change = view.from_matrix(matrices[view.name])
        wide = torch.promote_types(at_least_float32(weight).dtype, change.dtype)
        weights[view.name] = (weight.to(wide) + change.to(wide)).to(weight.dtype)
    return weights
