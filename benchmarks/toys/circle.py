"""A manifold without parts: inputs on a circle that is bent into more dimensions, where no feature is planted."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.measure.controls import random_like
from param_features.toys.planted_toy import DRAWS
from param_features.toys.toy import Toy
from param_features.toys.training import first_complete, trained

_N_ANGLES = 180
_N_ARCS = 12
_LEFT_OVER = 0.1


class Autoencoder(nn.Module):
    """y = W_out gelu(W_in x + b) + c."""

    def __init__(self, d_input: int, d_hidden: int) -> None:
        """Two linear layers."""
        super().__init__()
        self.encode = nn.Linear(d_input, d_hidden)
        self.decode = nn.Linear(d_hidden, d_input)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct the input."""
        return self.decode(nn.functional.gelu(self.encode(x)))


@dataclass(frozen=True)
class CircleScores:
    """How local features are along the circle. A feature's weight at an angle is its activation squared.

    Attributes:
        locality: Mean over features of the weight's concentration: the mean resultant length, 0 where it is even and 1
            where all of it is at one angle; or that of the doubled angle, if larger, which allows for two opposite lobes.
        random: The same of random directions of the features' shapes; a mean over ten draws.
        coverage: Share of the circle's 12 arcs in which some feature has its largest weight.
        coverage_random: The same of random directions.
        error: Held-out reconstruction error.
        error_random: That of random directions, at the same l0.
        l0: Features kept per sample.
        dead: Features that no held-out sample keeps.
    """

    locality: float
    random: float
    coverage: float
    coverage_random: float
    error: float
    error_random: float
    l0: float
    dead: int

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name."""
        return dict(vars(self))

    def __repr__(self) -> str:
        """One line."""
        return (
            f"locality {self.locality:.3f} (random directions {self.random:.3f}), coverage {self.coverage:.2f} "
            f"({self.coverage_random:.2f}), error {self.error:.3f} ({self.error_random:.3f}), {self.dead} dead"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class CircleToy(Toy):
    """An autoencoder of a bent circle.

    Attributes:
        by_angle: The inputs at evenly spaced angles.
    """

    by_angle: Float[Tensor, "angle d_input"]

    def score(self, features: ParamFeatures, *, seed: int = 0) -> CircleScores:
        """How local the features are along the circle, beside random directions.

        Args:
            features: A fit of the toy.
            seed: Of the random directions.
        """
        generator = torch.Generator().manual_seed(seed)
        locality, coverage = self._along_the_circle(features, features.v_in)
        drawn = [self._along_the_circle(features, random_like(features.v_in, generator)) for _ in range(DRAWS)]
        return CircleScores(
            locality=locality,
            random=sum(each for each, _ in drawn) / DRAWS,
            coverage=coverage,
            coverage_random=sum(each for _, each in drawn) / DRAWS,
            error=features.metrics["reconstruction_error"],
            error_random=features.metrics["control_random"],
            l0=features.metrics["l0"],
            dead=int(features.metrics["dead"]),
        )

    def _along_the_circle(self, features: ParamFeatures, v_in: LowRank) -> tuple[float, float]:
        weights = features.with_directions(v_in).activations(inputs=self.by_angle).square()
        arcs = weights.argmax(0) * _N_ARCS // len(weights)
        return float(concentration(weights).mean()), len(arcs.unique()) / _N_ARCS


def concentration(weights: Float[Tensor, "angle feature"]) -> Float[Tensor, " feature"]:
    """Mean resultant length of weights at evenly spaced angles, or of the doubled angles where that is larger, 0 to 1."""
    angles = torch.arange(len(weights)) * (2 * math.pi / len(weights))
    shares = (weights / weights.sum(0).clamp(min=1e-30)).to(torch.complex64)
    turns = torch.exp(1j * torch.stack([angles, 2 * angles]))
    return (turns @ shares).abs().max(0).values


@lru_cache(maxsize=64)
def circle(
    d_input: int = 12,
    d_hidden: int = 8,
    *,
    n_features: int = 12,
    n_inputs: int = 4000,
    n_steps: int = 3000,
    seed: int = 0,
) -> CircleToy:
    """A trained autoencoder of a circle embedded by a fixed random smooth map, 12 → 8 → 12.

    The map is tanh of a random linear one, then another, so that the curve bends through all input dimensions; each is
    scaled to variance 1. The model explains at least 90 % of every dimension's variance, or it is trained again from
    another start.
    There is no true number of features: the score says how local they are. Cost: two seconds.

    Args:
        d_input: Inputs and outputs.
        d_hidden: Hidden units.
        n_features: Features that `decompose` asks for.
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 1,024 inputs.
        seed: Of the map, initial weights and data.

    Raises:
        SettingError: Sizes are not positive.
        ToyError: No start led to a model that explains every dimension.

    Source: this library's own.
    """
    if min(d_input, d_hidden, n_features, n_inputs, n_steps) < 1:
        raise SettingError(
            f"d_input={d_input}, d_hidden={d_hidden}, n_features={n_features}, n_inputs={n_inputs} and n_steps={n_steps} "
            "must be positive."
        )
    generator = torch.Generator().manual_seed(seed)
    into, out = torch.randn(2, 32, generator=generator), torch.randn(32, d_input, generator=generator)

    def embed(angles: Tensor) -> Tensor:
        return torch.tanh(2 * torch.stack([angles.cos(), angles.sin()], 1) @ into) @ out

    by_angle = torch.arange(_N_ANGLES) * (2 * math.pi / _N_ANGLES)
    mean, std = embed(by_angle).mean(0), embed(by_angle).std(0)

    def draw(generator: torch.Generator, n: int = 1024) -> Tensor:
        return (embed(2 * math.pi * torch.rand(n, generator=generator)) - mean) / std

    evenly = (embed(by_angle) - mean) / std
    model = first_complete(
        lambda: trained(lambda: Autoencoder(d_input, d_hidden), lambda g: (x := draw(g), x), generator, n_steps=n_steps),
        lambda model: int(((model(evenly) - evenly).square().mean(0) > _LEFT_OVER).sum()),
        d_input,
        f"Ask for more hidden units than {d_hidden} or more n_steps.",
    )
    return CircleToy(
        name=f"circle in {d_input} dimensions through {d_hidden}",
        model=model,
        params=("encode.weight", "decode.weight"),
        inputs=draw(generator, n_inputs),
        n_features=n_features,
        l0=2,
        settings={"reference": "mean"},
        by_angle=evenly,
    )
