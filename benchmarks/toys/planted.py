"""Planted weights: a random network to which circuits of rank 1 are added, each behind a gate of its own."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.errors import SettingError
from param_features.fit.formats import LowRank
from param_features.toys.planted_toy import PlantedToy

_THRESHOLD = 0.5
_SIZE = 1.5


class Gated(nn.Module):
    """y = W_out ReLU(W_in x + b): untrained weights, with a circuit through each of the first hidden units."""

    def __init__(
        self, markers: Float[Tensor, "circuit d_in"], writes: Float[Tensor, "circuit d_out"], d_hidden: int, noise: float
    ) -> None:
        """Gaussian weights of standard deviation `noise`, then hidden unit k reads marker k and writes direction k."""
        super().__init__()
        n_circuits = len(markers)
        self.encode = nn.Linear(markers.shape[1], d_hidden)
        self.decode = nn.Linear(d_hidden, writes.shape[1], bias=False)
        with torch.no_grad():
            for weight in (self.encode.weight, self.decode.weight):
                nn.init.normal_(weight, std=noise)
            self.encode.weight[:n_circuits] += markers
            self.encode.bias.zero_()[:n_circuits] = -_THRESHOLD
            self.decode.weight[:, :n_circuits] += writes.T

    def forward(self, x: Tensor) -> Tensor:
        """[batch d_in] to [batch d_out]."""
        return self.decode(torch.relu(self.encode(x)))


@lru_cache(maxsize=64)
def planted_circuits(
    n_circuits: int = 10,
    d_model: int = 20,
    *,
    d_hidden: int = 30,
    noise: float = 0.05,
    probability: float = 0.02,
    n_inputs: int = 5000,
    seed: int = 0,
) -> PlantedToy:
    """A random network with circuits whose directions are known from their construction; nothing is trained.

    An input is the sum of its markers, orthogonal unit vectors, each present with the given probability at a size uniform
    in [1, 2], and of noise. Circuit k's hidden unit opens above half its marker, and writes a unit vector of its own.
    The circuits' gradients are all but orthogonal, and as many features as circuits are asked for: a feature that starts
    on a circuit that another has, or on a mixture of two, finds its way to one that none has by restarts alone.

    Args:
        n_circuits: Circuits, each with a marker, a hidden unit and an output direction.
        d_model: Width of inputs and outputs.
        d_hidden: Hidden units; those without a circuit are random.
        noise: Standard deviation of the random weights and of the inputs' noise.
        probability: Of each marker.
        n_inputs: Inputs for the decomposition.
        seed: Of weights, markers and data.

    Returns:
        The toy; feature k's direction is how circuit k's own parameters move its own output where its gate is open, at a
        marker of size 1.5: e_k ⊗ marker_k in W_in and write_k ⊗ e_k in W_out, without the random weights' part.

    Raises:
        SettingError: There is no room for the circuits, or another setting is out of range.
    """
    if not 0 < n_circuits <= min(d_model, d_hidden) or not 0 < probability < 1 or noise < 0 or n_inputs < 1:
        raise SettingError(
            f"n_circuits={n_circuits} must lie between 1 and the smaller of d_model={d_model} and d_hidden={d_hidden}, "
            f"probability={probability} between 0 and 1; noise={noise} not be negative and n_inputs={n_inputs} be positive."
        )
    generator = torch.Generator().manual_seed(seed)
    markers = torch.linalg.qr(torch.randn(d_model, n_circuits, generator=generator)).Q.T
    writes = nn.functional.normalize(torch.randn(n_circuits, d_model, generator=generator), dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = Gated(markers, writes, d_hidden, noise).eval()
    is_there = torch.rand(n_inputs, n_circuits, generator=generator) < probability
    sizes = is_there * (1 + torch.rand(n_inputs, n_circuits, generator=generator))
    return PlantedToy(
        name=f"{n_circuits} planted circuits",
        model=model,
        params=("encode.weight", "decode.weight"),
        inputs=sizes @ markers + noise * torch.randn(n_inputs, d_model, generator=generator),
        n_features=n_circuits,
        l0=n_circuits * probability,
        settings={"reference": torch.zeros(d_model)},
        truth=_circuits(markers, writes, d_hidden),
    )


def _circuits(markers: Float[Tensor, "circuit d_in"], writes: Float[Tensor, "circuit d_out"], d_hidden: int) -> LowRank:
    """∂(write_k · y) over circuit k's parameters: the marker into its unit, and what the open unit holds out of it."""
    units = torch.eye(d_hidden)[: len(markers), :, None]
    truth = LowRank(
        {
            "encode.weight": (units, _SIZE * markers[:, :, None]),
            "decode.weight": (writes[:, :, None], (_SIZE - _THRESHOLD) * units),
        }
    ).map(torch.clone)
    truth.scale_(1 / truth.norm())
    return truth
