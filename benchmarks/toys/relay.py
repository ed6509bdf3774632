"""A network of two layers that passes markers on through relays: of each of its jobs the circuit of features is known."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.toys.circuit_scores import CircuitScores, Edges, Nodes, read_circuit, score_circuit
from benchmarks.toys.given_features import given_features
from param_features.circuits import Circuit
from param_features.errors import SettingError
from param_features.features import ParamFeatures, decompose
from param_features.fit.formats import LowRank

RELAY_OF_MARKER = (0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5)
"""The relay that each marker opens: one feature of the first layer each."""

WIRES = ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (4, 0), (4, 4), (5, 4))
"""(relay, job): which relay writes to which job's output, one feature of the second layer each."""

_RARE = 11
_FIRST, _SECOND = "encode.weight", "decode.weight"
_N_MARKERS, _N_RELAYS, _N_JOBS = len(RELAY_OF_MARKER), 6, 5
_THRESHOLD = 0.5
_FAR = 100.0


class Relays(nn.Module):
    """y = ReLU(W_2 ReLU(W_1 x + b))."""

    def __init__(self, first: Float[Tensor, "hidden d_in"], bias: Tensor, second: Float[Tensor, "d_out hidden"]) -> None:
        """Hold copies of given weights."""
        super().__init__()
        self.encode = nn.Linear(first.shape[1], len(first))
        self.decode = nn.Linear(len(first), len(second), bias=False)
        with torch.no_grad():
            self.encode.weight.copy_(first)
            self.encode.bias.copy_(bias)
            self.decode.weight.copy_(second)

    def forward(self, x: Tensor) -> Tensor:
        """[batch d_in] to [batch d_out]."""
        return torch.relu(self.decode(torch.relu(self.encode(x))))


@dataclass(frozen=True, kw_only=True, eq=False)
class RelayToy:
    """A network whose circuits are known. A layer is its parameter's name; features are counted within their layer.

    Attributes:
        name: What it is.
        model: In evaluation mode.
        inputs: Data for the decompositions.
        planted: By layer, the unit-norm directions that its weight is made of.
        strengths: By layer, by how much each direction is in it: Σ strength · direction is the weight.
        markers: Orthonormal input patterns.
        outputs: Each job's unit-norm pattern of outputs.
        probability: Of each marker.
        n_features: By layer, how many features `decompose_layers` asks for: some more than were planted.
    """

    name: str
    model: Relays
    inputs: Float[Tensor, "sample d_in"]
    planted: Mapping[str, LowRank]
    strengths: Mapping[str, Tensor]
    markers: Float[Tensor, "marker d_in"]
    outputs: Float[Tensor, "job d_out"]
    probability: Float[Tensor, " marker"]
    n_features: Mapping[str, int]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the decomposed parameters, the first layer first."""
        return tuple(self.planted)

    @property
    def n_jobs(self) -> int:
        """Number of jobs."""
        return len(self.outputs)

    @property
    def references(self) -> Float[Tensor, "job d_out"]:
        """What outputs are compared with in a fit: a point far out along one job's output.

        2(y − y_r) is then nearly that job's output alone, whatever the others do: a sample's gradient is how the weights
        move one job. With the output 0 instead, a relay that writes to two jobs would have one feature for both.
        """
        return _FAR * self.outputs

    def decompose_layers(self, seed: int = 0, **changes: Any) -> dict[str, ParamFeatures]:
        """One `pf.decompose` of each layer, with the toy's own settings and `changes`. Cost: about five seconds a layer."""
        # Layer by layer, the mean number of planted features at work in a gradient: a marker is there, its job is drawn.
        n_wires = torch.tensor([sum(relay == k for relay, _ in WIRES) for k in RELAY_OF_MARKER])
        l0 = float((self.probability * n_wires).sum()) / self.n_jobs
        settings: dict[str, Any] = {
            "divergence": "se",
            "reference": self.references,
            "l0": l0,
            "steps": 1000,
            "progress": False,
            "seed": seed,
        }
        settings |= changes
        return {
            layer: decompose(self.model, layer, inputs=self.inputs, **{"n_features": n_features, **settings})
            for layer, n_features in self.n_features.items()
        }

    def planted_features(self) -> dict[str, ParamFeatures]:
        """The planted directions of each layer as features, without metrics: nothing was fitted."""
        return {
            layer: given_features(self.model, layer, rows, inputs=self.inputs, reference=self.references)
            for layer, rows in self.planted.items()
        }

    def metric(self, job: int) -> Callable[[Float[Tensor, "batch d_out"]], Float[Tensor, " batch"]]:
        """What a job is measured by: outputs projected on its pattern."""
        pattern = self.outputs[self._checked(job)]
        return lambda outputs: outputs @ pattern.to(outputs)

    @torch.no_grad()
    def prompts(self, job: int, n: int = 64, *, seed: int = 0) -> Float[Tensor, "prompt d_in"]:
        """Inputs on which a job is at work, drawn as the data are: others are at work on some of them too."""
        generator, measure = torch.Generator().manual_seed(2**20 + seed), self.metric(job)
        inputs = self.inputs[:0]
        while len(inputs) < n:
            drawn = _draw(self.markers, self.probability, 8 * n + 64, generator)
            inputs = torch.cat([inputs, drawn[measure(self.model(drawn)) > 0]])
        return inputs[:n]

    def truth(self, job: int) -> tuple[Nodes, Edges]:
        """The job's circuit in planted features: nodes (layer, feature), and edges from the first layer to the second."""
        self._checked(job)
        wires = {relay: (_SECOND, wire) for wire, (relay, to) in enumerate(WIRES) if to == job}
        edges = {((_FIRST, marker), wires[relay]) for marker, relay in enumerate(RELAY_OF_MARKER) if relay in wires}
        return frozenset(node for edge in edges for node in edge), frozenset(edges)

    def score(
        self,
        nodes: Iterable[tuple[str, int]],
        edges: Iterable[tuple[tuple[str, int], tuple[str, int]]],
        *,
        features: Mapping[str, ParamFeatures],
        job: int,
        seed: int = 0,
    ) -> CircuitScores:
        """Precision and recall of a circuit of fitted features against the job's own, beside random circuits.

        Args:
            nodes: (layer, feature) of each.
            edges: (source, target) of each; those that leave the circuit's nodes count as false.
            features: The fitted features of each layer.
            job: What the circuit is for.
            seed: Of the random circuits.

        Raises:
            SettingError: There is no such job, layer or feature.
        """
        directions = {layer: rows.v_out for layer, rows in features.items()}
        return score_circuit((nodes, edges), self.truth(job), planted=self.planted, found=directions, seed=seed)

    def score_circuit(
        self, circuit: Circuit, *, features: Mapping[str, ParamFeatures], job: int, seed: int = 0
    ) -> CircuitScores:
        """`score` of a graph whose groups are layers; error nodes and the output are not counted."""
        return self.score(*read_circuit(circuit), features=features, job=job, seed=seed)

    def _checked(self, job: int) -> int:
        if not 0 <= job < self.n_jobs:
            raise SettingError(f"There is no job {job!r}. Jobs are numbered 0 to {self.n_jobs - 1}.")
        return job


@lru_cache(maxsize=64)
def relay(
    *,
    d_in: int = 16,
    n_units: int = 3,
    probability: float = 0.02,
    rare: float = 0.015,
    n_inputs: int = 10000,
    n_spare: int = 2,
    seed: int = 0,
) -> RelayToy:
    """Weights that are built, not trained: twelve markers open six relays, and these write to the outputs of five jobs.

        markers   0 1 2   3 4   5 6   7 8   9 10   11 (rare)
        relay       0      1     2     3     4     5
        its jobs   0, 1   1, 2  2, 3   3    0, 4   4

    An input is a sum of markers, orthonormal patterns at an angle to the axes, each there with a probability of its own at
    a size s uniform in [1, 2]. A relay is a block of hidden units with a pattern a, and a job a block of outputs with a
    pattern c. W_1 = Σ strength · a ⊗ marker, one term for each marker and the relay that it opens, and W_2 = Σ strength ·
    c ⊗ a, one for each relay and each of its jobs, a wire. The terms are orthogonal, so that one is taken out without the
    others. The bias −a/2 makes a relay's units one gate: it passes on ReLU(Σ strength · s − 1/2), and a job's output is
    Σ strength · (what its relays pass on). All is positive; the last ReLU only keeps a job that nothing reaches from moving.

    So a job's circuit is the wires that lead to it and the markers of their relays, and an edge joins each wire to each of
    its relay's markers. Four relays serve two jobs each, every job has two relays, and relay 5 is seldom open.

    Args:
        d_in: Size of inputs.
        n_units: Hidden units of a relay.
        probability: Of each marker but the last.
        rare: Of the last.
        n_inputs: Inputs for the decompositions.
        n_spare: Features that are asked for beyond the planted ones, in each layer. A fit gives them to samples with
            several markers, whose gradients mix planted directions. Projected on such a mixture alone, the weight holds much
            of it; beside the features that it mixes, as `features.weight_coefficients()` counts, next to nothing.
        seed: Of patterns, strengths and data.

    Raises:
        SettingError: A setting is out of range.
    """
    is_share = all(0 < share < 1 for share in (probability, rare))
    if d_in < _N_MARKERS or min(n_units, n_inputs) < 1 or n_spare < 0 or not is_share:
        raise SettingError(
            f"d_in={d_in} must be at least {_N_MARKERS}, n_units={n_units} and n_inputs={n_inputs} positive, "
            f"n_spare={n_spare} not negative, probability={probability} and rare={rare} between 0 and 1."
        )
    generator = torch.Generator().manual_seed(seed)
    markers = torch.linalg.qr(torch.randn(d_in, _N_MARKERS, generator=generator)).Q.T
    relays, jobs = _blocks(_N_RELAYS, n_units, generator), _blocks(_N_JOBS, 2, generator)
    sources, targets = (list(ends) for ends in zip(*WIRES, strict=True))
    planted = {
        _FIRST: LowRank({_FIRST: (relays[list(RELAY_OF_MARKER), :, None], markers[:, :, None])}),
        _SECOND: LowRank({_SECOND: (jobs[targets, :, None], relays[sources, :, None])}),
    }
    strengths = {layer: 1 + torch.rand(rows.n_features, generator=generator) / 2 for layer, rows in planted.items()}
    weights = [torch.einsum("f,foi->oi", strengths[layer], rows.materialize()[layer]) for layer, rows in planted.items()]
    probabilities = torch.full((_N_MARKERS,), probability)
    probabilities[_RARE] = rare
    return RelayToy(
        name=f"{_N_MARKERS} markers through {_N_RELAYS} relays to {_N_JOBS} jobs",
        model=Relays(weights[0], -_THRESHOLD * relays.sum(0), weights[1]).eval(),
        inputs=_draw(markers, probabilities, n_inputs, generator),
        planted=planted,
        strengths=strengths,
        markers=markers,
        outputs=jobs,
        probability=probabilities,
        n_features={layer: rows.n_features + n_spare for layer, rows in planted.items()},
    )


def _blocks(n: int, size: int, generator: torch.Generator) -> Float[Tensor, "pattern unit"]:
    """Positive unit-norm patterns, each on a block of units of its own."""
    patterns = nn.functional.normalize(0.5 + torch.rand(n, size, generator=generator), dim=1)
    return torch.block_diag(*patterns)


def _draw(markers: Tensor, probability: Tensor, n: int, generator: torch.Generator) -> Float[Tensor, "sample d_in"]:
    is_there = torch.rand(n, len(markers), generator=generator) < probability
    return (is_there * (1 + torch.rand(n, len(markers), generator=generator))) @ markers
