"""Toy models of superposition: more sparse features than hidden units (Elhage et al. 2022, of that title)."""

from functools import lru_cache, partial

import torch
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.toys.planted_toy import PlantedToy, planted_directions
from param_features.toys.training import first_complete, sparse_uniform, trained

_REPRESENTED = 0.5


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
) -> PlantedToy:
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
    return PlantedToy(
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
