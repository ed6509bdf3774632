"""Toys whose features are known directions, and how well a fit finds them, beside truths that it must not find."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.features import ParamFeatures
from param_features.fit.formats import LowRank, leading_factors
from param_features.machine import public
from param_features.measure import Match, match_directions, random_like
from param_features.params import adapter_for, select
from param_features.toys.toy import Toy

_COVERED = 0.9
DRAWS = 10
"""Controls are means over this many draws."""


@dataclass(frozen=True, eq=False)
class Scores:
    """How well a fit found the planted features.

    Attributes:
        mmcs: Mean |cosine| of planted and found features, matched one to one; a planted one without a partner counts 0.
        n_covered: Planted features whose partner has |cosine| above 0.9.
        n_true: Planted features.
        shuffled: `mmcs` against the planted features with their rows and columns shuffled, which are no features; like the
            other controls a mean over ten draws.
        random: `mmcs` of random directions of the fit's shapes and ranks against the planted features.
        n_covered_shuffled: `n_covered` against the shuffled ones.
        n_covered_random: `n_covered` by the random directions.
        error: Held-out reconstruction error.
        l0: Features kept per sample.
        dead: Features that no held-out sample keeps.
        match: The pairs.
        extras: What one toy alone measures.
    """

    mmcs: float
    n_covered: int
    n_true: int
    shuffled: float
    random: float
    n_covered_shuffled: float
    n_covered_random: float
    error: float
    l0: float
    dead: int
    match: Match
    extras: Mapping[str, float] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, controls among them, flat, for tables."""
        numbers = {
            "mmcs": self.mmcs,
            "covered": self.n_covered,
            "true": self.n_true,
            "shuffled": self.shuffled,
            "random": self.random,
            "covered_shuffled": self.n_covered_shuffled,
            "covered_random": self.n_covered_random,
            "error": self.error,
            "l0": self.l0,
            "dead": self.dead,
        }
        return {**numbers, **self.extras}

    def __repr__(self) -> str:
        """One line."""
        extras = "".join(f", {name} {value:.3f}" for name, value in self.extras.items())
        return (
            f"MMCS {self.mmcs:.3f} (shuffled truth {self.shuffled:.3f}, random directions {self.random:.3f}), "
            f"{self.n_covered} of {self.n_true} covered, error {self.error:.3f}, {self.dead} dead{extras}"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedToy(Toy):
    """A toy whose features are known directions.

    Attributes:
        truth: One unit-norm direction per planted feature.
    """

    truth: LowRank

    @property
    def n_true(self) -> int:
        """Number of planted features."""
        return self.truth.n_features

    @public
    def score(self, features: ParamFeatures, *, seed: int = 0) -> Scores:
        """Score a fit against the planted features, and against truths that it must fail.

        Args:
            features: The fit, by the toy's own `decompose` or another of the same parameters.
            seed: Of the shuffled truth and the random directions.
        """
        generator = torch.Generator().manual_seed(seed)
        matched = match_directions(self.truth, features.v_out, generator)
        mmcs, n_covered = self._recovery(matched)
        shuffled = self._mean_recovery(lambda: (_shuffled(self.truth, generator), features.v_out))
        random = self._mean_recovery(lambda: (self.truth, random_like(features.v_out, generator)))
        return Scores(
            mmcs=mmcs,
            n_covered=n_covered,
            n_true=self.n_true,
            shuffled=shuffled[0],
            random=random[0],
            n_covered_shuffled=shuffled[1],
            n_covered_random=random[1],
            error=features.metrics["reconstruction_error"],
            l0=features.metrics["l0"],
            dead=int(features.metrics["dead"]),
            match=matched,
            extras=self._extras(features, matched, generator),
        )

    def _extras(self, features: ParamFeatures, match: Match, generator: torch.Generator) -> dict[str, float]:
        """What this toy alone measures, with its controls."""
        return {}

    def _recovery(self, match: Match) -> tuple[float, int]:
        """MMCS and the number covered: the one way in which the truth and its controls are scored."""
        return match.mean_cosine * len(match) / self.n_true, int((match.cosine.abs() > _COVERED).sum())

    def _mean_recovery(self, draw: Callable[[], tuple[LowRank, LowRank]]) -> tuple[float, float]:
        pairs = [self._recovery(match_directions(*draw(), torch.Generator())) for _ in range(DRAWS)]
        return sum(mmcs for mmcs, _ in pairs) / DRAWS, sum(n for _, n in pairs) / DRAWS


def _shuffled(truth: LowRank, generator: torch.Generator) -> LowRank:
    """Each direction with the rows and columns of its matrices in another order: as sparse, and as low in rank."""

    def shuffle(tensor: Tensor) -> Tensor:
        order = torch.stack([torch.randperm(tensor.shape[1], generator=generator) for _ in range(len(tensor))])
        return tensor.gather(1, order.unsqueeze(2).expand(tensor.shape))

    return truth.map(shuffle)


def planted_directions(
    model: nn.Module,
    params: Sequence[str],
    probes: Float[Tensor, "feature ..."],
    cotangents: Float[Tensor, "feature d_output"],
    rank: int = 1,
) -> LowRank:
    """Directions of planted features: how the parameters move the output of a feature, at an input that has it alone.

    Args:
        model: The trained model.
        params: Names of its parameters.
        probes: For each feature, an input with that feature alone.
        cotangents: For each feature, the combination of outputs that belongs to it.
        rank: How many factors of each gradient to keep.

    Returns:
        The gradients of those outputs, scaled to unit norm, [feature] directions.
    """
    return unit_directions(probe_gradients(model, params, probes, cotangents), rank)


def unit_directions(matrices: Mapping[str, Float[Tensor, "feature d_out d_in"]], rank: int) -> LowRank:
    """The leading factors of given matrices, scaled to unit norm over all parameters."""
    directions = leading_factors(matrices, rank)
    directions.scale_(1 / directions.norm())
    return directions


def probe_gradients(
    model: nn.Module,
    params: Sequence[str],
    probes: Float[Tensor, "probe ..."],
    cotangents: Float[Tensor, "probe d_output"],
) -> dict[str, Float[Tensor, "probe d_out d_in"]]:
    """Gradients of combinations of outputs at given inputs, one probe at a time by plain autograd: matrices by name."""
    adapter = adapter_for(model)
    subset = select(adapter.views(), list(params), adapter.aliases())
    rows: dict[str, list[Tensor]] = {name: [] for name in subset.names}
    for probe, cotangent in zip(probes, cotangents, strict=True):
        output = model(probe.unsqueeze(0))[0]
        gradients = torch.autograd.grad(output, list(subset.tensors.values()), cotangent)
        for view, gradient in zip(subset.views, gradients, strict=True):
            rows[view.name].append(view.to_matrix(gradient))
    return {name: torch.stack(matrices) for name, matrices in rows.items()}


def principal_gradient(
    matrices: Mapping[str, Float[Tensor, "probe d_out d_in"]],
) -> dict[str, Float[Tensor, "1 d_out d_in"]]:
    """The direction that rebuilds all given gradients best on its own: the leading one of their uncentred second moment."""
    flat = torch.cat([matrix.flatten(1) for matrix in matrices.values()], 1)
    leading = torch.linalg.svd(flat, full_matrices=False).Vh[0]
    parts = leading.split([matrix[0].numel() for matrix in matrices.values()])
    return {name: part.reshape(1, *matrix.shape[1:]) for (name, matrix), part in zip(matrices.items(), parts, strict=True)}


def principal_directions_of(batches: Iterable[Mapping[str, Float[Tensor, "probe d_out d_in"]]], rank: int) -> LowRank:
    """One direction from each batch of gradients: the leading factors of its `principal_gradient`, scaled to unit norm."""
    leading = [principal_gradient(batch) for batch in batches]
    return unit_directions({name: torch.cat([gradient[name] for gradient in leading]) for name in leading[0]}, rank)
