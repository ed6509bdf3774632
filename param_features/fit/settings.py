"""Settings of a fit, one class for each method."""

from dataclasses import dataclass
from typing import Literal

from param_features.errors import SettingError, nearest
from param_features.fit.formats import FORMATS
from param_features.machine import public

_LARGEST = 1e30
"""Numbers from here on overflow in float32."""


@public
@dataclass(frozen=True)
class FitSettings:
    """How the directions are learned.

    Attributes:
        steps: Number of Adam steps.
        batch_size: Samples per step.
        lr: Adam's peak learning rate; rises over the first 2 % of the steps, falls linearly to zero over the last half.
        selection: How a sample's coordinates are found. `"pursuit"`: features are taken one after the other, each time the
            one with the largest overlap with what is left, l0 per sample on average, and weighted by least squares; V_in
            learns to tell these coordinates linearly. `"top_k"`: V_in ∇, of which the largest l0 · batch are kept. `"l1"`:
            V_in ∇ under an L1 penalty, V_in = V_out.
        l1: Weight of the penalty, Σ_k |c_k| per sample against the squared error of gradients of mean square norm 1.
        warm_start: Share of the steps over which `"top_k"` keeps fewer and fewer features, from all to l0.
        dead_after: Steps without being kept after which a feature counts as dead.
        revive: Weight of the auxiliary loss by which `"top_k"`'s dead features learn what is left over.
        resample: How often, in the first 60 % of the steps, features that do little (dead ones, duplicates, rare mixtures)
            are replaced by what is left of badly rebuilt samples, where that lowers the error more.
        rank: Factors per feature and parameter; a bias has one at most.
        format: How a feature is held during the fit: `"matrix"` (`rank` outer products of d_out with d_in), `"cp"` (`rank`
            outer products over all axes: heads, within heads and d_in for W_K) or `"tucker"` (rank `rank` along each axis).
            The result is in the matrix format whichever it is.
    """

    steps: int = 1000
    batch_size: int = 1024
    lr: float = 3e-2
    selection: Literal["pursuit", "top_k", "l1"] = "pursuit"
    l1: float = 0.02
    warm_start: float = 0.1
    dead_after: int = 100
    revive: float = 1 / 32
    resample: int = 10
    rank: int = 1
    format: str = "matrix"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.selection not in ("pursuit", "top_k", "l1"):
            raise SettingError(f"selection={self.selection!r} is unknown. Accepted: 'pursuit', 'top_k', 'l1'.")
        for name in ("steps", "batch_size", "lr", "dead_after"):
            if not 0 < getattr(self, name) < _LARGEST:
                raise SettingError(f"{name}={getattr(self, name)} must be positive and below {_LARGEST:g}.")
        for name in ("l1", "revive", "resample"):
            if not 0 <= getattr(self, name) < _LARGEST:
                raise SettingError(f"{name}={getattr(self, name)} must not be negative, and below {_LARGEST:g}.")
        if not 0 <= self.warm_start < 1:
            raise SettingError(f"warm_start={self.warm_start} must lie in [0, 1).")
        if self.format not in FORMATS:
            raise SettingError(
                f"format={self.format!r} is unknown. Accepted: {', '.join(map(repr, FORMATS))}; nearest: "
                f"{nearest(self.format, FORMATS)}."
            )

    @property
    def is_tied(self) -> bool:
        """Whether V_in and V_out are one."""
        return self.selection == "l1"


@public
@dataclass(frozen=True)
class HessianSettings:
    """How the directions of `method="hessian"` are learned.

    Attributes:
        steps: Number of Adam steps.
        batch_size: Samples per step; for token models whole sequences, with every position a sample.
        lr: Adam's peak learning rate, over the steps as in `FitSettings`.
        interference: Weight of the interference of pairs against the curvature of single directions. At 1 two equal
            directions lose more by each other than the second one gains.
        spread: Weight of the interference of pairs at right angles, shared out over a direction's n_features − 1 partners;
            it falls to zero over the first half of the steps. Without it, few directions gather on the steepest samples.
        start: `"gradients"` starts from gradients of strong samples that are unlike each other, `"random"` from Gaussian
            factors: a check of what the climb finds by itself.
        rank: Factors per feature and parameter; a bias has one at most.
    """

    steps: int = 1000
    batch_size: int = 256
    lr: float = 3e-2
    interference: float = 1.0
    spread: float = 0.8
    start: str = "gradients"
    rank: int = 1

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("steps", "batch_size", "lr"):
            if not 0 < getattr(self, name) < _LARGEST:
                raise SettingError(f"{name}={getattr(self, name)} must be positive and below {_LARGEST:g}.")
        if self.start not in ("gradients", "random"):
            raise SettingError(f"start={self.start!r} is unknown. Accepted: 'gradients', 'random'.")
        if not 0 <= self.interference < _LARGEST:
            raise SettingError(f"interference={self.interference} must not be negative; 0 lets directions coincide.")
        if not 0 <= self.spread <= 1:
            raise SettingError(f"spread={self.spread} must lie in [0, 1]; 0 lets directions at right angles share samples.")

    @property
    def format(self) -> str:
        """How a feature is held during the fit: as outer products of d_out with d_in, always."""
        return "matrix"
