"""What features are at one checkpoint: their impact, curvature, reconstruction, and the change since the last one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.audit import refitted
from param_features.changes import ParamMatrices, projected
from param_features.fit import GradientDictionary, curvatures
from param_features.fitted import Fitted
from param_features.gradients import SampleGradients, collect_references
from param_features.measure import (
    ControlDictionary,
    dictionary_error,
    errors_by_l0,
    harvest_halves,
    match_directions,
    random_like,
)
from param_features.problem import CurvedDivergence, ModelInputs, Question

_POSITIONS_PER_BATCH = 4096
_FEWEST_ROWS = 16
_DRAWS = 4


@dataclass(frozen=True)
class TrackPlan:
    """What is measured at every checkpoint, and how much.

    Attributes:
        inputs: Where.
        n_samples: About how many samples are measured.
        refit: Whether features are fitted at each checkpoint.
        seed: Of references, positions, random directions and refits.
    """

    inputs: ModelInputs
    n_samples: int
    refit: bool
    seed: int

    @property
    def rows(self) -> ModelInputs:
        """The first of the inputs: those on which impact, density and curvature are measured."""
        return self.inputs.rows(slice(0, max(_FEWEST_ROWS, -(-self.n_samples // self.inputs.n_pos))))

    def generator(self) -> torch.Generator:
        """The same draws at every checkpoint, so that checkpoints are compared on the same samples and controls."""
        return torch.Generator().manual_seed(self.seed)


class Movement(NamedTuple):
    """A change of the decomposed parameters in features' coordinates; attributes as in `Track`."""

    moves: Float[Tensor, " feature"]
    norm: float
    share: float
    share_random: float


@dataclass(frozen=True, eq=False)
class TrackRow:
    """One checkpoint. Attributes are those of `Track`, without the axis of checkpoints."""

    impact: Float[Tensor, " feature"]
    density: Float[Tensor, " feature"]
    curvature: Float[Tensor, " feature"]
    moves: Float[Tensor, " feature"]
    norm: float
    share: float
    share_random: float
    errors: Mapping[str, float]
    match: Float[Tensor, " feature"] | None
    match_random: float


def row_at(features: Fitted, plan: TrackPlan, change: ParamMatrices | None) -> TrackRow:
    """Measure the features at the weights that their model has now.

    Args:
        features: Bound to the model.
        plan: What is measured, and how much.
        change: Of the decomposed parameters since the last checkpoint; None at the first.
    """
    question = _question(features, plan)
    rows = plan.rows
    impact, density = _activity(features, rows, question)
    refit = _refit(features, plan) if plan.refit else None
    matches = None if refit is None else match_directions(features.v_out, refit.v_out, plan.generator())
    movement = _movement(features, change, plan)
    return TrackRow(
        impact=impact,
        density=density,
        curvature=_curvature(features, rows),
        moves=movement.moves,
        norm=movement.norm,
        share=movement.share,
        share_random=movement.share_random,
        errors=errors_at(features, plan, question, refit),
        match=None if matches is None else _by_feature(matches.pairs[:, 0], matches.cosine.abs(), features.n_features),
        match_random=float("nan") if matches is None else matches.control_cosine,
    )


def errors_at(
    features: Fitted, plan: TrackPlan, question: Question | None = None, refit: Fitted | None = None
) -> dict[str, float]:
    """Reconstruction error of the present gradients by the features and by controls of as many directions at the same l0.

    Principal directions, and a refit, are of the first half of the rows; all is measured on the other half. The error of
    random directions, by which staleness is judged, is the mean over four draws: in few dimensions they differ.
    """
    engine, generator = features.bound_engine("track"), plan.generator()
    question = _question(features, plan) if question is None else question
    halves = harvest_halves(engine, question, plan.inputs, n_samples=plan.n_samples, generator=generator)
    l0 = features.metrics["l0"]
    curve = errors_by_l0(_of_gradients(features), halves, engine, l0s=[l0], generator=generator)
    errors = {name: values[0] for name, values in curve.errors.items()}
    errors["control_random"] = fmean([errors["control_random"], *_random_errors(features, halves[1], generator)])
    if refit is not None:
        errors["refit"] = _of_gradients(refit).error(halves[1], l0)
    return errors


def _of_gradients(features: Fitted) -> GradientDictionary:
    return features.dictionary.of_gradients("pf.track() measures errors of gradients", "Track features of method 'l3d'.")


def _random_errors(features: Fitted, store: SampleGradients, generator: torch.Generator) -> list[float]:
    """Reconstruction errors of further draws of random directions of the features' shapes and ranks."""
    controls = [ControlDictionary.of(random_like(features.v_out, generator)) for _ in range(_DRAWS - 1)]
    is_pursued, l0 = _of_gradients(features).encoder.n_rounds is not None, features.metrics["l0"]
    return [dictionary_error(dictionary, store, l0, is_pursued=is_pursued) for dictionary in controls]


def _question(features: Fitted, plan: TrackPlan) -> Question:
    """Outputs of the present weights to compare with, of the fit's kind; the user's own, and those of pairs, stay."""
    question = features.question
    if question.kind in ("given", "pairs"):
        return question
    n, engine = len(question.references), features.bound_engine("track")
    references = collect_references(engine, question.divergence, plan.inputs, question.kind, n, plan.generator())
    return replace(question, references=references)


@torch.no_grad()
def _activity(
    features: Fitted, rows: ModelInputs, question: Question
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"]]:
    """Mean |activation|, and the share of samples that keep each feature by the fit's own threshold."""
    readings = features.dictionary.read(features.bound_engine("track"), question, rows).real()
    return readings.activations.double().abs().mean(0), (readings.codes != 0).double().mean(0)


def _curvature(features: Fitted, rows: ModelInputs) -> Float[Tensor, " feature"]:
    """Mean over samples of (J v)ᵀ F (J v); NaN for a divergence whose Hessian in the output is not known."""
    engine, divergence = features.bound_engine("track"), features.divergence
    if not isinstance(divergence, CurvedDivergence):
        return torch.full((features.n_features,), float("nan"), dtype=torch.float64)
    size = max(1, _POSITIONS_PER_BATCH // (rows.n_pos if engine.per_position else 1))
    batches = [rows.rows(slice(start, start + size)) for start in range(0, len(rows), size)]
    v_out = features.v_out.map(lambda tensor: tensor.detach())
    return torch.cat([curvatures(engine, divergence, v_out, batch).detach().cpu() for batch in batches]).double().mean(0)


def _movement(features: Fitted, change: ParamMatrices | None, plan: TrackPlan) -> Movement:
    """What the change does along features; NaN at the first checkpoint."""
    nan = float("nan")
    if change is None:
        return Movement(torch.full((features.n_features,), nan, dtype=torch.float64), nan, nan, nan)
    inside = projected(features.v_out, change)
    random = projected(random_like(features.v_out, plan.generator()), change)
    norm = float(torch.stack([matrix.square().sum() for matrix in change.values()]).sum().sqrt())
    return Movement(inside.overlaps, norm, inside.share, random.share)


def _refit(features: Fitted, plan: TrackPlan) -> Fitted:
    """Features of the present weights, fitted as these were but with another seed, to the first half of the rows.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the fit early.
    """
    half = plan.inputs.rows(slice(0, len(plan.inputs) // 2))
    tokens, inputs = _as_arguments(half)
    refit = refitted(features, tokens, inputs, seed=plan.seed + (plan.seed == features.config["seed"]))
    if refit.config["steps_done"] < refit.config["fit"]["steps"]:
        raise KeyboardInterrupt
    return refit


def _as_arguments(inputs: ModelInputs) -> tuple[Any, Any]:
    """The same inputs as a user gives them: tokens, and inputs instead of tokens."""
    if inputs.mask is not None and inputs.args:
        return {"input_ids": inputs.args[0], "attention_mask": inputs.mask.long()}, None
    return None, inputs.args or inputs.kwargs


def _by_feature(places: Tensor, values: Tensor, n: int) -> Float[Tensor, " feature"]:
    """Values at their features' places; 0 for features without a partner."""
    return torch.zeros(n, dtype=torch.float64).index_copy(0, places, values.double())
