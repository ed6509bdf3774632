"""Features for a target beside a background: two fits as one dictionary, measured beside a fit that knows no background."""

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from param_features.fit import Fit, OffTarget, joined_fits
from param_features.gradients import (
    GradientEngine,
    Harvester,
    HarvestSettings,
    SampleGradients,
    SampleProbe,
    plan_samples,
    question_of,
)
from param_features.machine import ALONE, Processes
from param_features.measure import background_metrics, on_target
from param_features.problem import Background, ReadBackground

_MOST_SAMPLES = 8192
_N_REFERENCES = 16

Stores = tuple[SampleGradients, SampleGradients]
"""Training and held-out gradients."""


def background_gradients(
    background: ReadBackground,
    engine: GradientEngine,
    harvest: HarvestSettings,
    *,
    n_features: int,
    generator: torch.Generator,
    progress: bool,
    processes: Processes = ALONE,
) -> Stores:
    """Training and held-out gradients of a background at random positions.

    Args:
        background: Its samples; what outputs are compared with is drawn from them.
        engine: Takes the gradients.
        harvest: The target's settings, of which the number of samples is not heeded.
        n_features: How many features are fitted to them.
        generator: Draws rows, positions and references.
        progress: Whether to show progress bars.
        processes: Who share the batches.

    Raises:
        SampleCountError: There are fewer training samples than features.
    """
    problem = background.problem
    question = question_of(problem, engine, _N_REFERENCES, generator)
    settings = replace(harvest, n_samples=background.settings.n_samples, max_samples=_MOST_SAMPLES)
    probe = SampleProbe(engine, problem.data)
    harvester = Harvester(probe, question.divergence, question.drawn, settings).agreed(processes)
    plan = plan_samples(problem, harvester.settings_that_fit, n_features, generator)

    def store(rows: Tensor, title: str) -> SampleGradients:
        data = problem.data.rows(rows)
        return harvester.store(data, plan.n_slots, generator, progress=progress, title=title, processes=processes)

    return store(plan.train, "background"), store(plan.held_out, "held out")


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
    metrics = background_metrics(
        found, alone, n_target, target=target[1], background=background[1], rank=rank, l0=l0, generator=generator
    )
    record = {
        "n_target": n_target,
        "weight": settings.weight,
        "n_samples": background[0].n_samples,
        "on_target": on_target(found.dictionary.v_out, target=target[1], background=background[1]).tolist(),
    }
    return found, metrics, {"background": record}
