"""XOR in four parameters: two GELU units that are summed."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank
from param_features.gradients.types import Dense
from param_features.measure.agreement import Match, match_directions
from param_features.measure.controls import random_like
from param_features.toys.planted_toy import DRAWS, PlantedToy, planted_directions, probe_gradients
from param_features.toys.training import first_complete, trained

CORNERS = ((0, 1), (1, 0), (1, 1))
"""The inputs that have a feature each; at (0, 0) no parameter matters."""

_TOLERANCE = 0.05


class SummedUnits(nn.Module):
    """y = Σ_j gelu(w_j · x), without biases."""

    def __init__(self) -> None:
        """Two units of two weights."""
        super().__init__()
        self.hidden = nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[batch 2] to [batch 1]."""
        return nn.functional.gelu(self.hidden(x)).sum(-1, keepdim=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class XorToy(PlantedToy):
    """Further numbers: `corners`, how many of the three are where their matched feature fires highest; `corners_random`."""

    def fires_highest(self, features: ParamFeatures) -> list[tuple[int, int]]:
        """For each feature the corner of `CORNERS` where a step along it moves the output most."""
        return [CORNERS[corner] for corner in _slopes(self, features.v_out).abs().argmax(0).tolist()]

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        def n_corners(directions: LowRank, match: Match) -> int:
            corners, partners = match.pairs.T
            return int((_slopes(self, directions)[:, partners].abs().argmax(0) == corners).sum())

        random = [random_like(features.v_out, generator) for _ in range(DRAWS)]
        random_corners = [n_corners(drawn, match_directions(self.truth, drawn, generator)) for drawn in random]
        return {"corners": n_corners(features.v_out, match), "corners_random": sum(random_corners) / DRAWS}


def _slopes(toy: XorToy, directions: LowRank) -> Float[Tensor, "corner feature"]:
    """The output's derivative along each direction at each corner."""
    corners = torch.tensor(CORNERS, dtype=torch.float32)
    gradients = probe_gradients(toy.model, toy.params, corners, torch.ones(len(corners), 1))
    return directions.inner({name: Dense(matrix) for name, matrix in gradients.items()})


@lru_cache(maxsize=64)
def xor(*, n_inputs: int = 1000, n_steps: int = 1000, seed: int = 0) -> XorToy:
    """A trained model of XOR whose four outputs are within 0.05 of the truth.

    It is trained and decomposed on the four corners alone, where XOR is defined. The feature of a corner is how the
    parameters move the output there. That of [1, 1] overlaps with the two others (|cosine| about one half): all three share
    four parameters. Outputs are compared with one half, from which every corner's differs: another sample's output would
    often be the same. Cost: about a second.

    Args:
        n_inputs: Inputs for the decomposition, drawn from the four corners.
        n_steps: Training steps over the four corners.
        seed: Of initial weights and data.

    Raises:
        SettingError: Sizes are not positive.
        ToyError: No start led to XOR.

    Source: "Feature and Circuit Identification through Sparse Eigendecomposition", the first draft of L3D: features that
        fire highest on [0, 1], [1, 1] and [1, 0].
    """
    if min(n_inputs, n_steps) < 1:
        raise SettingError(f"n_inputs={n_inputs} and n_steps={n_steps} must be positive.")
    generator = torch.Generator().manual_seed(seed)
    corners = torch.tensor([(0.0, 0.0), *CORNERS])
    targets = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    model = first_complete(
        lambda: trained(SummedUnits, lambda _: (corners, targets), generator, n_steps=n_steps, lr=2e-2),
        lambda model: int(((model(corners) - targets).abs() > _TOLERANCE).sum()),
        len(corners),
        "Ask for more n_steps.",
    )
    params = ("hidden.weight",)
    return XorToy(
        name="XOR in two summed GELU units",
        model=model,
        params=params,
        inputs=corners[torch.randint(len(corners), (n_inputs,), generator=generator)],
        n_features=3,
        l0=0.75,
        settings={"reference": torch.tensor([0.5])},
        truth=planted_directions(model, params, corners[1:], torch.ones(3, 1)),
    )
