"""Features for a target beside a background: two fits as one dictionary, measured beside a fit that knows no background."""

from typing import Any, Protocol, runtime_checkable

import torch

from param_features.background import Background
from param_features.decompose import Fit, OffTarget, joined_fits
from param_features.gradients import SampleGradients
from param_features.measure import background_metrics, on_target

Stores = tuple[SampleGradients, SampleGradients]
"""Training and held-out gradients."""


@runtime_checkable
class FitCall(Protocol):
    """Fits features to gradients, from the same draws at each call."""

    def __call__(self, store: SampleGradients, n_features: int | None = None, off_target: OffTarget | None = None) -> Fit:
        """A fit with the user's settings."""
        ...


def fit_beside(
    fit: FitCall,
    target: Stores,
    background: Stores,
    settings: Background,
    *,
    n_features: int,
    rank: int,
    l0: float,
    generator: torch.Generator,
) -> tuple[Fit, dict[str, float], dict[str, Any]]:
    """Features for the target under a penalty on what they do on the background, then features for the background alone.

    Cost: three fits, one of them without a background, for comparison: `n_features` features from the same draws.

    Args:
        fit: Fits features to gradients.
        target: The target's gradients.
        background: The background's.
        settings: How many features are the background's, and the penalty's weight.
        n_features: In all.
        rank: Of each.
        l0: Features kept per sample.
        generator: Draws the random control.

    Returns:
        The features, their metrics on the background, and what the record says of it.
    """
    n_own = settings.n_own(n_features)
    n_target = n_features - n_own
    alone = fit(target[0])
    found = fit(target[0], n_target, OffTarget(background[0], settings.weight))
    if n_own:
        found = joined_fits(found, fit(background[0], n_own), target[0], l0)
    held_out = {"target": target[1], "background": background[1]}
    metrics = background_metrics(found, alone, n_target, rank=rank, l0=l0, generator=generator, **held_out)
    record = {
        "n_target": n_target,
        "weight": settings.weight,
        "n_samples": background[0].n_samples,
        "on_target": on_target(found.v_out, **held_out).tolist(),
    }
    return found, metrics, {"background": record}
