"""X ↦ X² through four hidden layers: one input's circuit spreads over several layers and units."""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.measure.agreement import Match
from param_features.measure.controls import random_like
from param_features.measure.ranking import auroc
from param_features.toys.planted_toy import DRAWS, PlantedToy, principal_directions_of, probe_gradients
from param_features.toys.training import first_complete, trained

_SIZES = (-1.0, -0.75, -0.5, 0.5, 0.75, 1.0)
_TOLD = 0.9
_LARGE = 0.5
_N_RANKED = 1000
_REPRESENTED = 0.7
_CURVED, _STRAIGHT, _MIXING = 0.75, 1.0, 0.13


class DeepMLP(nn.Module):
    """GELU layers of one width, with biases."""

    def __init__(self, width: int, n_hidden: int) -> None:
        """`n_hidden` layers and a linear one, near the identity.

        The first biases put its units where GELU is curved, the others' where it is straight: from a usual start training
        leaves an input out almost always.
        """
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(n_hidden + 1)])
        biases = [-_CURVED, *[_STRAIGHT] * (n_hidden - 1), 0.0]
        for layer, bias in zip(self.layers, biases, strict=True):
            nn.init.normal_(layer.weight, std=_MIXING)  # type: ignore[arg-type]
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]
            with torch.no_grad():
                layer.weight.add_(torch.eye(width))  # type: ignore[operator, union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """[batch width] to [batch width]."""
        for layer in self.layers[:-1]:
            x = nn.functional.gelu(layer(x))
        return self.layers[-1](x)


@dataclass(frozen=True, kw_only=True, eq=False)
class SquaresToy(PlantedToy):
    """Further numbers: `told`, inputs that their feature's |activation| tells from the others; `told_random`; `auroc`.

    An input is told where its matched feature's |activation| tells samples in which it has at least half its largest size
    from those in which it is absent, with an area under ROC of at least 0.9; `auroc` is the mean of that area. Smaller
    inputs are left out, for the square of a small number is next to nothing.
    """

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        inputs, partners = match.pairs.T
        areas = _areas(self, features, features.v_in)[inputs, partners]
        random = [_areas(self, features, random_like(features.v_in, generator))[inputs, partners] for _ in range(DRAWS)]
        n_told = torch.stack([(areas >= _TOLD).sum(), *[(area >= _TOLD).sum() for area in random]]).tolist()
        return {"told": n_told[0], "told_random": sum(n_told[1:]) / DRAWS, "auroc": float(areas.mean())}


def _areas(toy: SquaresToy, features: ParamFeatures, v_in: LowRank) -> Float[Tensor, "input feature"]:
    """Area under ROC of "input i is at least half its size", against "it is absent", by feature k's |activation|."""
    inputs = toy.inputs[:_N_RANKED]
    acts = features.with_directions(v_in).activations(inputs=inputs).abs()
    sizes = inputs.abs().T
    counted = [(size == 0) | (size >= _LARGE) for size in sizes]
    return torch.stack([auroc(acts[rows], size[rows] > 0) for rows, size in zip(counted, sizes, strict=True)])


@lru_cache(maxsize=64)
def squares(
    n_features: int = 5,
    n_hidden: int = 4,
    *,
    probability: float = 0.3,
    n_inputs: int = 10000,
    n_steps: int = 6000,
    seed: int = 0,
) -> SquaresToy:
    """A trained model of X ↦ X², 5 inputs in [−1, 1] through 4 hidden GELU layers of 5.

    Every input is represented: where it is active alone, its output explains at least 70 % of its square's variance over 21
    even sizes in [−1, 1], or the model is trained again from another start. Cost: about ten seconds.

    Args:
        n_features: Inputs, outputs and units of every layer.
        n_hidden: Hidden layers.
        probability: Of each input; its size is uniform in [−1, 1].
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 1,024 inputs.
        seed: Of initial weights and data.

    Returns:
        The toy; feature i's direction is of rank 2: the leading factors of the one direction that best rebuilds how the
        weights move output i (times its size) at inputs where only input i is active.

    Raises:
        SettingError: `probability` lies outside (0, 1), or sizes are not positive.
        ToyError: No start led to a model that represents every input.

    Source: L3D (arXiv 2504.00194), the toy of X ↦ X². Differs: outputs are compared with the output 0.
    """
    if not 0 < probability < 1 or min(n_features, n_hidden, n_inputs, n_steps) < 1:
        raise SettingError(
            f"n_features={n_features}, n_hidden={n_hidden}, n_inputs={n_inputs} and n_steps={n_steps} must be positive, and "
            f"probability={probability} between 0 and 1."
        )
    generator = torch.Generator().manual_seed(seed)
    draw = partial(_draw, n_features, probability)
    model = first_complete(
        lambda: trained(
            partial(DeepMLP, n_features, n_hidden),
            lambda g: ((x := draw(g)), x.square()),
            generator,
            n_steps=n_steps,
            lr=1e-2,
        ),
        _n_left_out,
        n_features,
        "Ask for more n_steps or a smaller probability.",
    )
    params = tuple(f"layers.{layer}.weight" for layer in range(n_hidden + 1))
    return SquaresToy(
        name=f"{n_features} squares through {n_hidden} layers",
        model=model,
        params=params,
        inputs=draw(generator, n=n_inputs),
        n_features=n_features,
        rank=2,
        l0=1,
        settings={"reference": torch.zeros(n_features)},
        truth=_circuits(model, params, n_features),
    )


def _draw(n_features: int, probability: float, generator: torch.Generator, *, n: int = 1024) -> Tensor:
    is_there = torch.rand(n, n_features, generator=generator) < probability
    return (2 * torch.rand(n, n_features, generator=generator) - 1) * is_there


def _probes(n_features: int, feature: int) -> Tensor:
    return torch.tensor(_SIZES)[:, None] * torch.eye(n_features)[feature]


def _n_left_out(model: nn.Module) -> int:
    n_features = model.layers[0].in_features  # type: ignore[index]
    sizes = torch.linspace(-1, 1, 21)
    outputs = torch.stack([model(sizes[:, None] * unit)[:, i] for i, unit in enumerate(torch.eye(n_features))])
    rest = (outputs - sizes.square()).square().mean(1) / sizes.square().var()
    return int((rest > 1 - _REPRESENTED).sum())


def _circuits(model: nn.Module, params: tuple[str, ...], n_features: int) -> LowRank:
    probes = [_probes(n_features, feature) for feature in range(n_features)]
    return principal_directions_of([probe_gradients(model, params, each, each.square()) for each in probes], 2)
