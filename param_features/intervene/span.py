"""How much of the weights lies in the span of features."""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.gradients import Dense, Gradients, at_least_float32
from param_features.params import ParamSubset


@torch.no_grad()
def span_coefficients(directions: LowRank, subset: ParamSubset) -> Float[Tensor, " feature"]:
    """C = Gram⁺ ⟨v, W⟩: Σ c_k v_k is the point of the features' span that is nearest to the weights. In float64.

    Cost: an eigendecomposition of the Gram matrix; n_features³.
    """
    return torch.linalg.pinv(directions.gram().double(), hermitian=True, rtol=1e-6) @ weight_overlaps(directions, subset)


@torch.no_grad()
def weight_overlaps(directions: LowRank, subset: ParamSubset) -> Float[Tensor, " feature"]:
    """How far the weights lie along each direction, ⟨v_k, W⟩, in float64."""
    weights: Gradients = {
        name: Dense(at_least_float32(view.to_matrix(view.tensor.detach())).unsqueeze(0))
        for name, view in zip(directions.factors, subset.views, strict=True)
    }
    return directions.inner(weights)[0].double()


@torch.no_grad()
def outside_span(directions: LowRank, subset: ParamSubset) -> dict[str, Float[Tensor, "*shape"]]:
    """W minus the nearest point of the features' span, by name; new tensors in float32 or better."""
    coefficients = span_coefficients(directions, subset)
    remainders = {}
    for view, (left, right) in zip(subset.views, directions.factors.values(), strict=True):
        inside = einsum(coefficients, left.double(), right.double(), "k, k o rank, k i rank -> o i")
        matrix = view.to_matrix(at_least_float32(view.tensor.detach()))
        remainders[view.name] = view.from_matrix((matrix.double() - inside).to(matrix.dtype))
    return remainders


def weight_norm(subset: ParamSubset) -> float:
    """The norm ‖W‖ of all chosen parameters together."""
    return float(torch.stack([view.tensor.detach().double().square().sum().cpu() for view in subset.views]).sum().sqrt())
