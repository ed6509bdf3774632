"""Features of higher rank: inputs that are only ever active together share one circuit."""

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.measure.agreement import Match
from param_features.measure.controls import random_like
from param_features.toys.planted_toy import (
    DRAWS,
    PlantedToy,
    principal_directions_of,
    probe_gradients,
    unit_directions,
)
from param_features.toys.tms import Untied
from param_features.toys.training import first_complete, trained

_REPRESENTED = 0.5
_INSIDE = 0.9
_N_PROBES = 100


@dataclass(frozen=True, kw_only=True, eq=False)
class GroupsToy(PlantedToy):
    """Further numbers: `inside`, groups whose partner lies in that group's weights (at least 90 % of its squared norm).

    Beside it `inside_random`, and `reach_rank_1`, the mean |cosine| with the truth that the best directions of rank 1 have.

    Attributes:
        group_size: Inputs of each group.
    """

    group_size: int

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        def n_inside(directions: LowRank) -> int:
            groups, partners = match.pairs.T
            return int((self.shares(directions)[partners, groups] >= _INSIDE).sum())

        random = [n_inside(random_like(features.v_out, generator)) for _ in range(DRAWS)]
        best = unit_directions(self.truth.materialize(), 1).gram(self.truth).diagonal()
        return {
            "inside": n_inside(features.v_out),
            "inside_random": sum(random) / DRAWS,
            "reach_rank_1": float(best.mean()),
        }

    def shares(self, directions: LowRank) -> Float[Tensor, "feature group"]:
        """How much of each direction's squared norm lies in the weights into and out of each group's units."""
        dense = directions.materialize()
        squares = dense["encode.weight"].square().sum(1) + dense["decode.weight"].square().sum(2)
        shares = squares.unflatten(1, (-1, self.group_size)).sum(2)
        return shares / shares.sum(1, keepdim=True)


@lru_cache(maxsize=64)
def groups(
    n_groups: int = 5,
    group_size: int = 5,
    d_hidden: int = 15,
    *,
    rank: int = 3,
    probability: float = 0.05,
    n_inputs: int = 10000,
    n_steps: int = 3000,
    seed: int = 0,
) -> GroupsToy:
    """A trained autoencoder of inputs in co-active groups, 25 inputs in 5 groups of 5 through 15 hidden units.

    An active group has all its inputs active, of independent sizes uniform in [0, 1]. Every input is represented: its output
    explains at least half of its variance while its group is active alone, or the model is trained again from another start.

    A group's direction is the one that rebuilds its gradients best on its own: their leading principal direction over inputs
    with that group alone, cotangents the group's own outputs, whatever its rank, which is the group's size here. A direction
    of rank 1 can have a |cosine| of 0.99 with it, since sizes share a sign; what the rank buys is a lower error, without
    which a fit gives two features to one group and none to another. Cost: three seconds.

    Args:
        n_groups: Groups of inputs.
        group_size: Inputs of each group.
        d_hidden: Hidden units.
        rank: Of the features to be found.
        probability: Of each group.
        n_inputs: Inputs for the decomposition.
        n_steps: Training steps of 2,048 inputs.
        seed: Of initial weights and data.

    Raises:
        SettingError: `probability` lies outside (0, 1), `rank` exceeds the group's size, or sizes are not positive.
        ToyError: No start led to a model that represents every input.

    Source: L3D (arXiv 2504.00194), the toy of higher-rank circuits. Differs: outputs are compared with the
        output 0, and a direction is compared with the group's own, not by the place of its weights alone.
    """
    if not 0 < probability < 1 or min(n_groups, group_size, d_hidden, n_inputs, n_steps) < 1 or not 1 <= rank <= group_size:
        raise SettingError(
            f"n_groups={n_groups}, group_size={group_size}, d_hidden={d_hidden}, n_inputs={n_inputs} and n_steps={n_steps} "
            f"must be positive, rank={rank} between 1 and group_size, and probability={probability} between 0 and 1."
        )
    generator, n_features = torch.Generator().manual_seed(seed), n_groups * group_size
    draw = partial(_draw, n_groups, group_size, probability)
    probes = _draw(n_groups, group_size, 1.0, generator, n=_N_PROBES)
    model = first_complete(
        lambda: trained(partial(Untied, n_features, d_hidden), lambda g: (x := draw(g), x), generator, n_steps=n_steps),
        lambda model: int((_explained(model, probes, group_size) < _REPRESENTED).sum()),
        n_features,
        f"Ask for fewer groups, more hidden units than {d_hidden} or a smaller probability.",
    )
    params = ("encode.weight", "decode.weight")
    return GroupsToy(
        name=f"{n_groups} groups of {group_size} in {d_hidden}",
        model=model,
        params=params,
        inputs=draw(generator, n=n_inputs),
        n_features=n_groups,
        rank=rank,
        l0=n_groups * probability,
        settings={"reference": torch.zeros(n_features)},
        truth=_group_directions(model, params, probes, group_size),
        group_size=group_size,
    )


def _draw(n_groups: int, group_size: int, probability: float, generator: torch.Generator, *, n: int = 2048) -> Tensor:
    is_there = torch.rand(n, n_groups, 1, generator=generator) < probability
    return (torch.rand(n, n_groups, group_size, generator=generator) * is_there).flatten(1)


def _alone(probes: Float[Tensor, "probe input"], group: int, group_size: int) -> tuple[Tensor, slice]:
    """The probes with one group alone, and where it lies."""
    place = slice(group * group_size, (group + 1) * group_size)
    alone = torch.zeros_like(probes)
    alone[:, place] = probes[:, place]
    return alone, place


def _explained(model: torch.nn.Module, probes: Float[Tensor, "probe input"], group_size: int) -> Float[Tensor, " input"]:
    """Share of each input's variance that its output explains while its group is active alone."""
    parts = []
    for group in range(probes.shape[1] // group_size):
        alone, place = _alone(probes, group, group_size)
        rest = (model(alone) - alone)[:, place].square().mean(0)
        parts.append(1 - rest / alone[:, place].var(0))
    return torch.cat(parts)


def _group_directions(model: torch.nn.Module, params: tuple[str, ...], probes: Tensor, group_size: int) -> LowRank:
    gradients = []
    for group in range(probes.shape[1] // group_size):
        alone, place = _alone(probes, group, group_size)
        with torch.no_grad():
            own = torch.zeros_like(probes)
            own[:, place] = model(alone)[:, place]
        gradients.append(probe_gradients(model, params, alone, own))
    return principal_directions_of(gradients, group_size)
