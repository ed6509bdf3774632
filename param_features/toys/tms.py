"""Toy models of superposition: more sparse features than hidden units (Elhage et al. 2022, of that title)."""

from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.gradients import Dense
from param_features.machine import public
from param_features.measure import Match, match_directions, random_like
from param_features.toys.planted_toy import (
    DRAWS,
    PlantedToy,
    planted_directions,
    principal_directions_of,
    probe_gradients,
)
from param_features.toys.training import first_complete, sparse_uniform, trained

_REPRESENTED = 0.5
_MOST = 0.8
_N_REACH = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class SuperpositionToy(PlantedToy):
    """Further numbers: `own`, unit inputs with a feature of their own; `steepest`, MMCS with `steepest_directions`.

    A feature is an input's own where more than 0.8 of its squared slope, over all outputs and unit inputs, lies there.
    `own_random` and `steepest_random` are those of random directions. `reach` is the MMCS of the directions that rebuild the
    data's own gradients best, see `reachable_directions`: what a fit of these data can be expected to reach.
    """

    @cached_property
    def steepest_directions(self) -> LowRank:
        """For each unit input the direction along which the squared error from the model's own output is curved most.

        It moves every output that is active there, the planted one that input's own output alone: the two differ where
        neighbours in the hidden units are active too.
        """
        by_input = torch.arange(self.n_true**2).chunk(self.n_true)
        batches = [{name: matrix[rows] for name, matrix in self._slopes.items()} for rows in by_input]
        return principal_directions_of(batches, self.rank)

    @cached_property
    def reachable_directions(self) -> LowRank:
        """For each feature the direction that rebuilds best how its own output moves at inputs that have it among others.

        The other features' mean tilts it away from the planted direction, which is that of the feature alone: where two
        features are active on average, by a cosine of about 0.96.
        """
        gradients = []
        for feature in range(self.n_true):
            inputs = self.inputs[self.inputs[:, feature] > 0][:_N_REACH]
            with torch.no_grad():
                outputs = self.model(inputs)
            cotangents = 2 * outputs * torch.eye(self.n_true)[feature]
            gradients.append(probe_gradients(self.model, self.params, inputs, cotangents))
        return principal_directions_of(gradients, self.rank)

    @cached_property
    def _slopes(self) -> dict[str, Float[Tensor, "input_output d_out d_in"]]:
        """The gradient of every output at every unit input."""
        units = torch.eye(self.n_true)
        return probe_gradients(
            self.model, self.params, units.repeat_interleave(self.n_true, 0), units.repeat(self.n_true, 1)
        )

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        random = [random_like(features.v_out, generator) for _ in range(DRAWS)]
        return {
            "own": self._n_own(features.v_out),
            "own_random": sum(map(self._n_own, random)) / DRAWS,
            "steepest": self._steepest_recovery(features.v_out),
            "steepest_random": sum(map(self._steepest_recovery, random)) / DRAWS,
            "reach": self._recovery(match_directions(self.truth, self.reachable_directions, torch.Generator()))[0],
        }

    def _n_own(self, directions: LowRank) -> int:
        slopes = directions.inner({name: Dense(matrix) for name, matrix in self._slopes.items()})
        by_input = slopes.square().unflatten(0, (self.n_true, self.n_true)).sum(1)
        return int((by_input > _MOST * by_input.sum(0)).any(1).sum())

    def _steepest_recovery(self, directions: LowRank) -> float:
        return self._recovery(match_directions(self.steepest_directions, directions, torch.Generator()))[0]


class Untied(nn.Module):
    """y = ReLU(W_out W_in x + b)."""

    def __init__(self, n_features: int, d_hidden: int) -> None:
        """Start with W_out = W_inᵀ, so that no output starts dead."""
        super().__init__()
        self.encode = nn.Linear(n_features, d_hidden, bias=False)
        self.decode = nn.Linear(d_hidden, n_features)
        nn.init.normal_(self.encode.weight, std=d_hidden**-0.5)
        self.decode.weight.data.copy_(self.encode.weight.data.T)
        nn.init.zeros_(self.decode.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct the input."""
        return torch.relu(self.decode(self.encode(x)))


class Tied(nn.Module):
    """y = ReLU(Wᵀ W x + b)."""

    def __init__(self, n_features: int, d_hidden: int) -> None:
        """W is [d_hidden, n_features]."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(d_hidden, n_features) * d_hidden**-0.5)
        self.bias = nn.Parameter(torch.zeros(n_features))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct the input."""
        return torch.relu(x @ self.weight.T @ self.weight + self.bias)


@public
@lru_cache(maxsize=64)
def superposition(
    n_features: int = 5,
    d_hidden: int = 2,
    *,
    probability: float = 0.05,
    is_tied: bool = False,
    n_inputs: int = 3000,
    n_steps: int = 2000,
    seed: int = 0,
) -> SuperpositionToy:
    """A trained model of superposition in which every feature is represented.

    An input has each feature with the given probability, its size uniform in [0, 1]. A model that leaves a feature out
    (its output for that feature alone stays below one half) is trained again from another start. Results are cached within
    the process: the same arguments give the same object.
    Cost: a second or two for 5 features in 2 hidden units on one core.

    Args:
        n_features: Sparse features, each an input and an output.
        d_hidden: Hidden units.
        probability: Of each feature in each input.
        is_tied: Whether the output layer is the input layer transposed.
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 2,048 inputs.
        seed: Of initial weights and data.

    Returns:
        The toy; feature i's direction is how the parameters move output i at the i-th unit input.

    Raises:
        SettingError: `probability` lies outside (0, 1), or sizes are not positive.
        ToyError: No start led to a model that represents every feature.

    Source: L3D (arXiv 2504.00194), "Toy Model of Superposition"; 5 features in 2 and 40 in 10 are its sizes and SPD's.
    """
    if not 0 < probability < 1 or min(n_features, d_hidden, n_inputs, n_steps) < 1:
        raise SettingError(
            f"n_features={n_features}, d_hidden={d_hidden}, n_inputs={n_inputs} and n_steps={n_steps} must be positive, and "
            f"probability={probability} between 0 and 1."
        )
    generator, units = torch.Generator().manual_seed(seed), torch.eye(n_features)
    build = partial(Tied if is_tied else Untied, n_features, d_hidden)
    model = first_complete(
        lambda: trained(build, partial(_batch, n_features, probability), generator, n_steps=n_steps),
        lambda model: int((model(units).diagonal() < _REPRESENTED).sum()),
        n_features,
        f"Ask for fewer features, more hidden units than {d_hidden} or a smaller probability.",
    )
    params = ("weight",) if is_tied else ("encode.weight", "decode.weight")
    return SuperpositionToy(
        name=f"superposition of {n_features} in {d_hidden}, {'tied' if is_tied else 'untied'}",
        model=model,
        params=params,
        inputs=sparse_uniform(n_inputs, n_features, probability, generator),
        n_features=n_features,
        l0=max(0.5, n_features * probability),
        truth=planted_directions(model, params, units, units),
    )


def _batch(n_features: int, probability: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = sparse_uniform(2048, n_features, probability, generator)
    return x, x
