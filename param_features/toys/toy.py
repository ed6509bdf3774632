"""A toy: a trained model of which it is known what its features should be, with the two calls that every toy has."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from param_features.features import ParamFeatures, decompose
from param_features.fit import FitSettings, HessianSettings


@runtime_checkable
class HasNumbers(Protocol):
    """What every toy's `score` returns."""

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, controls among them, flat, for tables."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Toy(ABC):
    """A trained model of which it is known what its features should be.

    Attributes:
        name: What it is.
        model: In evaluation mode.
        params: Names of the decomposed parameters.
        inputs: Data for the decomposition, drawn as the training data were.
        n_features: How many features `decompose` asks for.
        l0: Features that a sample has on average, and some room: the l0 of `decompose`.
        rank: Of the features.
        divergence: What the toy is decomposed with.
        settings: Further arguments of `pf.decompose` that this toy needs.
    """

    name: str
    model: nn.Module
    params: tuple[str, ...]
    inputs: Tensor
    n_features: int
    l0: float
    rank: int = 1
    divergence: str = "se"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def decompose(self, *, seed: int = 0, **changes: Any) -> ParamFeatures:
        """`pf.decompose` with the toy's own settings, in 1,000 steps where it has no other number, and `changes`."""
        defaults = {"n_features": self.n_features, "l0": self.l0, "divergence": self.divergence}
        settings = {**defaults, "steps": 1000, "progress": False, **self.settings, **changes}
        if self.rank != 1:
            usual = HessianSettings() if settings.get("method") == "hessian" else FitSettings()
            settings["fit"] = replace(settings.get("fit") or usual, rank=self.rank)
        return cast(ParamFeatures, decompose(self.model, self.params, inputs=self.inputs, seed=seed, **settings))

    @abstractmethod
    def score(self, features: ParamFeatures, *, seed: int = 0) -> HasNumbers:
        """Score a fit of the toy, and truths or directions that must fail, with random choices drawn from `seed`."""
