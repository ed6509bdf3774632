"""Toy models of superposition: more sparse features than hidden units (Elhage et al. 2022, of that title)."""

from functools import lru_cache

import torch
from torch import Tensor, nn

from param_features.errors import SettingError, ToyError
from param_features.toys.toy import Toy, planted_directions

_ATTEMPTS = 20
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
) -> Toy:
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
    generator, n_left_out = torch.Generator().manual_seed(seed), n_features
    units = torch.eye(n_features)
    for _ in range(_ATTEMPTS):
        model = _trained(Tied if is_tied else Untied, n_features, d_hidden, probability, n_steps, generator)
        n_left_out = _n_left_out(model, units)
        if not n_left_out:
            return _toy(model, units, d_hidden, _draw(n_inputs, n_features, probability, generator), probability)
    raise ToyError(
        f"After {_ATTEMPTS} starts, {n_left_out} of {n_features} features are left out by {d_hidden} hidden units. Ask "
        "for fewer features, more hidden units or a smaller probability."
    )


def _toy(model: nn.Module, units: Tensor, d_hidden: int, inputs: Tensor, probability: float) -> Toy:
    is_tied = isinstance(model, Tied)
    params = ("weight",) if is_tied else ("encode.weight", "decode.weight")
    return Toy(
        name=f"superposition of {len(units)} in {d_hidden}, {'tied' if is_tied else 'untied'}",
        model=model,
        params=params,
        inputs=inputs,
        truth=planted_directions(model, params, units, units),
        l0=max(0.5, len(units) * probability),
    )


@torch.no_grad()
def _n_left_out(model: nn.Module, units: Tensor) -> int:
    return int((model(units).diagonal() < _REPRESENTED).sum())


def _draw(n: int, n_features: int, probability: float, generator: torch.Generator) -> Tensor:
    is_there = torch.rand(n, n_features, generator=generator) < probability
    return torch.rand(n, n_features, generator=generator) * is_there


def _trained(
    kind: type[nn.Module], n_features: int, d_hidden: int, probability: float, n_steps: int, generator: torch.Generator
) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = kind(n_features, d_hidden)
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            x = _draw(2048, n_features, probability, generator)
            loss = (model(x) - x).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()
