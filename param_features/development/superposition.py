"""How many directions share how little room, and how unevenly impact is spread."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import InputError, NonFiniteError
from param_features.fit.formats import Directions
from param_features.fitted import Fitted
from param_features.machine import own_modes, public


@public
@own_modes()
@torch.no_grad()
def dimensionality(vectors: Any) -> Float[Tensor, " vector"]:
    """‖v_i‖² / Σ_j (v̂_i·v_j)²: the share of a dimension that each vector has for itself, from above 0 to 1.

    1 for a vector orthogonal to all others, 1/2 for one of an antipodal pair, 2/5 for one of a pentagon's five; 0 for a
    vector of zeros.

    Cost: n_vectors² numbers.

    Args:
        vectors: Rows [vector, d], such as a toy's `model.weight.T`; or features, or directions, whose vectors are V_out's.

    Raises:
        InputError: Neither features nor a matrix.
        NonFiniteError: A vector holds NaN or infinity.

    Source: Elhage et al. 2022, "Toy Models of Superposition", "The Geometry of Superposition".
    """
    gram = _gram(vectors).detach().double()
    if not bool(torch.isfinite(gram).all()):
        raise NonFiniteError("A vector holds NaN or infinity, which share room with everything. Give finite vectors.")
    square = gram.diagonal()
    shared = (gram.square() / square.clamp(min=1e-300)[:, None]).sum(1)
    return torch.where(square > 0, square / shared.clamp(min=1e-300), 0.0)


def _gram(vectors: Any) -> Float[Tensor, "vector vector"]:
    if isinstance(vectors, Fitted):
        vectors = vectors.v_out
    if isinstance(vectors, Directions):
        return vectors.gram()
    if isinstance(vectors, Tensor) and vectors.dim() == 2 and vectors.is_floating_point():
        return vectors.double() @ vectors.double().T
    shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
    raise InputError(f"dimensionality takes features or a matrix of rows [vector, d], not {shape}.")


@public
def gini(values: Float[Tensor, "*other value"]) -> Float[Tensor, "*other"]:
    """Gini coefficient along the last axis, of the values' sizes: 0 where all are equal, 1 − 1/n where one has everything.

    Args:
        values: Such as mean impacts of features; their signs are ignored. NaN where all are 0.

    Raises:
        InputError: There are none.

    Source: Hurley and Rickard 2009, "Comparing Measures of Sparsity"; used for Fourier components by Nanda et al. 2023.
    """
    if values.dim() == 0 or values.shape[-1] == 0:
        raise InputError(f"gini needs one value or more along the last axis, and the shape is {tuple(values.shape)}.")
    ascending = values.detach().double().abs().sort(-1).values
    n = ascending.shape[-1]
    weight = torch.arange(1, n + 1, dtype=torch.float64, device=values.device)
    total = ascending.sum(-1)
    return (2 * (ascending * weight).sum(-1) / total - (n + 1)) / n
