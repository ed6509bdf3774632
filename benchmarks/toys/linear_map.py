"""A linear map in superposition: X ↦ AX through a hidden layer that is narrower than either side."""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.gradients import Gradients
from param_features.gradients.types import Dense
from param_features.measure.agreement import Match, match_directions
from param_features.measure.controls import random_like
from param_features.toys.planted_toy import DRAWS, PlantedToy, planted_directions, probe_gradients
from param_features.toys.training import first_complete, sparse_uniform, trained

_REPRESENTED = 0.8


class LinearMap(nn.Module):
    """y = W_out W_in x."""

    def __init__(self, n_inputs: int, d_hidden: int, n_outputs: int) -> None:
        """Two linear layers without biases."""
        super().__init__()
        self.encode = nn.Linear(n_inputs, d_hidden, bias=False)
        self.decode = nn.Linear(d_hidden, n_outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def map(self) -> Float[Tensor, "output input"]:
        """W_out W_in."""
        return self.decode.weight @ self.encode.weight


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearMapToy(PlantedToy):
    """Further numbers: `r2`, r² of the recovered map against the model's own; `r2_random`; `r2_model`, the model's with A.

    Attributes:
        A: What the model was trained to apply, [output input].
    """

    A: Float[Tensor, "output input"]

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        own = self.model.map()  # type: ignore[operator]
        random = [_recovered(self, *[random_like(features.v_out, generator)] * 2) for _ in range(DRAWS)]
        return {
            "r2": r_squared(recovered_map(self, features), own),
            "r2_random": sum(r_squared(found, own) for found in random) / DRAWS,
            "r2_model": r_squared(own, self.A),
        }


def recovered_map(toy: LinearMapToy, features: ParamFeatures) -> Float[Tensor, "output input"]:
    """The map as the features hold it, one column from each planted input's matched feature.

    At the i-th unit input e_i, against the output 0, the gradient of the squared error with respect to W_out is
    2 (M e_i) ⊗ h_i, with M the model's map and h_i = W_in e_i. Feature i alone rebuilds it as c_i V_i: its activation there,
    times its direction's part in W_out. So column i is c_i V_i h_i / (2 ‖h_i‖²): exactly M e_i for a feature that rebuilds
    that gradient exactly, and no scale is fitted to M. A planted input without a partner has the column 0.
    """
    return _recovered(toy, features.v_in, features.v_out)


def _recovered(toy: LinearMapToy, v_in: LowRank, v_out: LowRank) -> Float[Tensor, "output input"]:
    units = torch.eye(toy.n_true)
    with torch.no_grad():
        outputs, hidden = toy.model(units), toy.model.encode(units)  # type: ignore[operator]
    matrices = probe_gradients(toy.model, toy.params, units, 2 * outputs)
    gradients: Gradients = {name: Dense(rows) for name, rows in matrices.items()}
    inputs, partners = match_directions(toy.truth, v_out, torch.Generator()).pairs.T
    activations = v_in.inner(gradients)[inputs, partners]
    hidden = hidden[inputs]
    moved = torch.einsum("poi,pi->po", v_out.rows(partners).materialize()["decode.weight"], hidden)
    columns = torch.zeros(toy.n_true, outputs.shape[1])
    columns[inputs] = activations[:, None] * moved / (2 * hidden.square().sum(1, keepdim=True))
    return columns.T


def r_squared(found: Float[Tensor, "output input"], true: Float[Tensor, "output input"]) -> float:
    """Share of the variance of a matrix's entries that another explains: 1 − Σ(true − found)² / Σ(true − mean)²."""
    return float(1 - (true - found).square().sum() / (true - true.mean()).square().sum())


@lru_cache(maxsize=64)
def linear_map(
    n_features: int = 10,
    d_hidden: int = 5,
    *,
    probability: float = 0.05,
    n_inputs: int = 10000,
    n_steps: int = 3000,
    seed: int = 0,
) -> LinearMapToy:
    """A trained model of X ↦ AX, 10 → 5 → 10, with A uniform in [0, 3] and sparse inputs.

    The model cannot hold A, whose rank is twice that of its hidden layer: `r2_model` says how near it comes. Every input is
    represented: |cosine| of the model's column and A's is at least 0.8, or the model is trained again from another start.
    Cost: two seconds.

    Args:
        n_features: Inputs and outputs.
        d_hidden: Hidden units.
        probability: Of each input; its size is uniform in [0, 1].
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 2,048 inputs.
        seed: Of A, initial weights and data.

    Returns:
        The toy; feature i's direction is how the parameters move the output along A's column i at the i-th unit input.

    Raises:
        SettingError: `probability` lies outside (0, 1), or sizes are not positive.
        ToyError: No start led to a model that represents every input.

    Source: L3D (arXiv 2504.00194), the toy called TMCS. Differs: outputs are compared
        with the output 0 for no input, where L3D draws another sample's output, which mixes two samples' circuits.
    """
    if not 0 < probability < 1 or min(n_features, d_hidden, n_inputs, n_steps) < 1:
        raise SettingError(
            f"n_features={n_features}, d_hidden={d_hidden}, n_inputs={n_inputs} and n_steps={n_steps} must be positive, and "
            f"probability={probability} between 0 and 1."
        )
    generator, units = torch.Generator().manual_seed(seed), torch.eye(n_features)
    A = 3 * torch.rand(n_features, n_features, generator=generator)
    model = first_complete(
        lambda: trained(
            partial(LinearMap, n_features, d_hidden, n_features),
            partial(_batch, A, probability),
            generator,
            n_steps=n_steps,
        ),
        lambda model: int((torch.cosine_similarity(model(units), A.T) < _REPRESENTED).sum()),
        n_features,
        f"Ask for fewer features or more hidden units than {d_hidden}.",
    )
    params = ("encode.weight", "decode.weight")
    return LinearMapToy(
        name=f"linear map of {n_features} through {d_hidden}",
        model=model,
        params=params,
        inputs=sparse_uniform(n_inputs, n_features, probability, generator),
        n_features=n_features,
        l0=1,
        settings={"reference": torch.zeros(n_features)},
        truth=planted_directions(model, params, units, A.T),
        A=A,
    )


def _batch(A: Tensor, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = sparse_uniform(2048, A.shape[1], probability, generator)
    return x, x @ A.T
