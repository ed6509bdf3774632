"""A toy model with its planted features, and how well a fit finds them, beside truths that it must not find."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from param_features.adapters import adapter_for
from param_features.directions import LowRank, leading_factors
from param_features.features import ParamFeatures
from param_features.measure.match import Match, match_directions
from param_features.params import select
from param_features.pipeline import decompose

_COVERED = 0.9


@dataclass(frozen=True)
class Toy:
    """A trained model whose features are known.

    Attributes:
        name: What it is.
        model: In evaluation mode.
        params: Names of the decomposed parameters.
        inputs: Data for the decomposition, drawn as the training data were.
        truth: One unit-norm direction per planted feature.
        l0: Planted features that a sample has on average, and some room: the l0 of `decompose`.
        rank: Of the planted directions.
        divergence: What the toy is decomposed with.
    """

    name: str
    model: nn.Module
    params: tuple[str, ...]
    inputs: Tensor
    truth: LowRank
    l0: float
    rank: int = 1
    divergence: str = "se"

    @property
    def n_true(self) -> int:
        """Number of planted features."""
        return self.truth.n_features

    def decompose(self, *, seed: int = 0, **changes: Any) -> ParamFeatures:
        """`pf.decompose` with the toy's own settings, as many features as are planted, and `changes`."""
        settings = {"n_features": self.n_true, "rank": self.rank, "l0": self.l0, "steps": 1000, "progress": False}
        call = {**settings, "divergence": self.divergence, **changes}
        return decompose(self.model, self.params, inputs=self.inputs, seed=seed, **call)


@dataclass(frozen=True)
class Scores:
    """How well a fit found the planted features.

    Attributes:
        mmcs: Mean |cosine| of planted and found features, matched one to one; a planted one without a partner counts 0.
        n_covered: Planted features whose partner has |cosine| above 0.9.
        n_true: Planted features.
        shuffled: `mmcs` against the planted features with their rows and columns shuffled, which are no features.
        random: `mmcs` of random directions of the fit's shapes and ranks against the planted features.
        error: Held-out reconstruction error.
        dead: Features that no held-out sample keeps.
        match: The pairs.
    """

    mmcs: float
    n_covered: int
    n_true: int
    shuffled: float
    random: float
    error: float
    dead: int
    match: Match

    def __repr__(self) -> str:
        """One line."""
        return (
            f"MMCS {self.mmcs:.3f} (shuffled truth {self.shuffled:.3f}, random directions {self.random:.3f}), "
            f"{self.n_covered} of {self.n_true} covered, error {self.error:.3f}, {self.dead} dead"
        )


def score(toy: Toy, features: ParamFeatures, *, seed: int = 0) -> Scores:
    """Score a fit of a toy against its planted features, and against truths that it must fail.

    Args:
        toy: What was decomposed.
        features: The fit, by the toy's own `decompose` or another of the same parameters.
        seed: Of the shuffled truth and the random directions.
    """
    generator = torch.Generator().manual_seed(seed)
    found = match_directions(toy.truth, features.v_out, generator)
    shuffled = match_directions(_shuffled(toy.truth, generator), features.v_out, generator)
    share = len(found) / toy.n_true
    return Scores(
        mmcs=found.mean_cosine * share,
        n_covered=int((found.cosine.abs() > _COVERED).sum()),
        n_true=toy.n_true,
        shuffled=shuffled.mean_cosine * share,
        random=found.control_cosine * share,
        error=features.metrics["reconstruction_error"],
        dead=int(features.metrics["dead"]),
        match=found,
    )


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
    """What a feature is, by definition: how the parameters move the output that is its own, at an input that is it alone.

    Args:
        model: The trained model.
        params: Names of its parameters.
        probes: For each feature, an input with that feature alone.
        cotangents: For each feature, the combination of outputs that is its own.
        rank: How many factors of each gradient to keep.

    Returns:
        The gradients of those outputs, scaled to unit norm, [feature] directions.
    """
    adapter = adapter_for(model)
    subset = select(adapter.views(), list(params), adapter.aliases())
    rows: dict[str, list[Tensor]] = {name: [] for name in subset.names}
    for probe, cotangent in zip(probes, cotangents, strict=True):
        output = model(probe.unsqueeze(0))[0]
        gradients = torch.autograd.grad(output, list(subset.tensors.values()), cotangent)
        for view, gradient in zip(subset.views, gradients, strict=True):
            rows[view.name].append(view.to_matrix(gradient))
    found = leading_factors({name: torch.stack(matrices) for name, matrices in rows.items()}, rank)
    found.scale_(1 / found.norm())
    return found
