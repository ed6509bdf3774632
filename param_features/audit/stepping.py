"""Steps along single features, both ways and ever longer: specificity, sign and linearity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.audit.subjects import AuditSubject
from param_features.audit.table import AuditRow
from param_features.intervene import deltas_of
from param_features.measure import auroc, distance, read_effects

_SPECIFICITY = {
    "auroc": "area under ROC with which the outputs' movement ranks the feature's top inputs; median over features",
    "ratio": "movement on the feature's top inputs over that on all others; median over features",
}


@dataclass(frozen=True)
class StepEffects:
    """What every step did to every sample.

    Attributes:
        distance: How far the output moved, [step sign direction sample]; KL(before ‖ after) in nats for KL. Signs: +, −.
        change: By how much D changed, averaged over the references.
    """

    distance: Float[Tensor, "step sign direction sample"]
    change: Float[Tensor, "step sign direction sample"]


def step_along(subject: AuditSubject, settings: AuditSettings) -> StepEffects:
    """Step along every chosen feature and every random direction. Cost: two forward passes for each, at each length."""
    n = subject.directions.n_features
    changes = [
        deltas_of(subject.directions, {k: sign * step * subject.norm}, subject.engine.subset)
        for step in settings.steps
        for sign in (1, -1)
        for k in range(n)
    ]
    effects = read_effects(subject.engine, subject.inputs, changes, effect_reader(subject))
    effects = effects.reshape(len(settings.steps), 2, n, -1, 2)
    return StepEffects(effects[..., 0], effects[..., 1])


def effect_reader(subject: AuditSubject) -> Callable[[Tensor, Tensor], Float[Tensor, "sample two"]]:
    """A function of the outputs before and after a step: how far they moved and how D changed, [sample two].

    For the built-in divergences the mean change over references is the change against the mean reference.
    """
    question, moved_by = subject.features.question, distance(subject.features.divergence)
    if question.is_affine:
        question = replace(question, references=question.references.mean(0, keepdim=True))

    def effect(before: Tensor, after: Tensor) -> Float[Tensor, "sample two"]:
        change = question.value(after) - question.value(before)
        return torch.stack([moved_by(before, after), change], 1)

    return effect


def ranking(moved: Float[Tensor, "direction sample"], top: Bool[Tensor, "sample feature"]) -> Float[Tensor, " direction"]:
    """Area under ROC with which how far each direction's step moved the outputs ranks the paired feature's top inputs."""
    return auroc(moved.T.contiguous(), top).diagonal()


def ratio(moved: Float[Tensor, "direction sample"], top: Bool[Tensor, "sample feature"]) -> Float[Tensor, " direction"]:
    """Mean movement on the paired feature's top inputs over that on all others."""
    on = (moved * top.T).sum(1) / top.T.sum(1)
    off = (moved * ~top.T).sum(1) / (~top.T).sum(1)
    return on / off.clamp(min=1e-30)


def specificity(subject: AuditSubject, effects: StepEffects, settings: AuditSettings) -> tuple[list[AuditRow], dict]:
    """Whether a step moves the outputs of the feature's top inputs more than others'; read at the shortest step."""
    n, top = len(subject.chosen), subject.top
    moved = effects.distance.mean(1)
    shuffled = top[torch.randperm(len(top), generator=subject.generator)]
    curves = {}
    for name, measure in (("auroc", ranking), ("ratio", ratio)):
        by_step = {
            "features": [measure(movement[:n], top) for movement in moved],
            "random": [measure(movement[n:], top) for movement in moved],
            "matched": [measure(movement[:n][subject.matched], top) for movement in moved],
            "shuffled": [measure(movement[:n], shuffled) for movement in moved],
        }
        curves |= {f"{name} {group}": tuple(float(v.median()) for v in values) for group, values in by_step.items()}
    rows = [
        _specificity_row("auroc", curves, settings, limit=settings.least_auroc, margin=settings.margin),
        _specificity_row("ratio", curves, settings, limit=settings.least_ratio, factor=settings.factor),
    ]
    return rows, curves | {"movement": tuple(float(movement[:n].mean()) for movement in moved)}


def _specificity_row(
    name: str,
    curves: Mapping[str, Sequence[float]],
    settings: AuditSettings,
    *,
    limit: float,
    margin: float = 0.0,
    factor: float = 1.0,
) -> AuditRow:
    """One of the two measures of specificity, at the shortest step."""
    controls = ("random", "matched", "shuffled")
    return AuditRow(
        f"specificity, {name}",
        curves[f"{name} features"][0],
        {control: curves[f"{name} {control}"][0] for control in controls},
        limit,
        True,
        f"{_SPECIFICITY[name]}; ‖δv‖ = {settings.steps[0]:g} ‖W‖. At {settings.steps[-1]:g}: "
        f"{curves[f'{name} features'][-1]:.2f}",
        controls,
        margin,
        factor,
    )


def signs(subject: AuditSubject, effects: StepEffects, settings: AuditSettings) -> AuditRow:
    """Whether D rises where the activation is positive and falls where it is negative, on the top inputs."""
    n, top = len(subject.chosen), subject.top

    def agreement(change: Float[Tensor, "direction sample"], acts: Float[Tensor, "sample direction"]) -> float:
        agrees = (change.sign() == acts.T.sign()) & top.T
        return float((agrees.sum(1) / top.T.sum(1)).median())

    change = (effects.change[0, 0] - effects.change[0, 1]) / 2
    mixed = subject.acts[torch.randperm(len(subject.acts), generator=subject.generator)]
    controls = {
        "random": agreement(change[n:], subject.acts),
        "matched": agreement(change[:n][subject.matched], subject.acts),
        "shuffled": agreement(change[:n], mixed),
    }
    return AuditRow(
        "sign",
        agreement(change[:n], subject.acts),
        controls,
        settings.least_sign,
        True,
        "share of a feature's top inputs on which D moves the way its activation says; median over features; "
        f"‖δv‖ = {settings.steps[0]:g} ‖W‖",
        ("random", "matched", "shuffled"),
        margin=settings.margin,
    )


def linearity(subject: AuditSubject, effects: StepEffects, settings: AuditSettings) -> tuple[AuditRow, dict]:
    """How far δ ⟨∇D, v⟩ foretells the change of D as δ grows."""
    n, norm = len(subject.chosen), subject.norm
    by_step = []
    for step, change in zip(settings.steps, effects.change, strict=True):
        predicted = step * norm * subject.slopes.T
        by_step.append(_correlation(torch.cat([predicted, -predicted], 1), torch.cat([change[0], change[1]], 1)))
    correlations = torch.stack(by_step)
    order = torch.randperm(len(subject.slopes), generator=subject.generator)
    mixed = _correlation(subject.slopes[order].T, effects.change[0, 0])[:n]
    breaks = _breaks(correlations, settings)
    row = AuditRow(
        "linearity",
        float(correlations[0, :n].median()),
        {"shuffled": float(mixed.median()), "random": float(correlations[0, n:].median())},
        settings.least_correlation,
        True,
        f"correlation of D's change with δ⟨∇D, v⟩ over samples at ‖δv‖ = {settings.steps[0]:g} ‖W‖; median over features. "
        f"It falls below {settings.least_correlation:g} at {_in_words(breaks[:n], settings)} (random directions, whose "
        f"effects are smaller: {_in_words(breaks[n:], settings)})",
        ("shuffled",),
    )
    curves = {
        "linearity features": correlations[:, :n].median(1).values,
        "linearity random": correlations[:, n:].median(1).values,
    }
    return row, {name: tuple(values.tolist()) for name, values in curves.items()}


def _correlation(a: Float[Tensor, "row sample"], b: Float[Tensor, "row sample"]) -> Float[Tensor, " row"]:
    a, b = (values.double() - values.double().mean(1, keepdim=True) for values in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)


def _breaks(correlations: Float[Tensor, "step direction"], settings: AuditSettings) -> Float[Tensor, " direction"]:
    """The first step at which the correlation is too low; infinite where it never is."""
    low = correlations < settings.least_correlation
    steps = torch.tensor(settings.steps, dtype=torch.float64)
    return torch.where(low.any(0), steps[low.double().argmax(0)], torch.inf)


def _in_words(breaks: Float[Tensor, " direction"], settings: AuditSettings) -> str:
    middle = float(breaks.median())
    return f"{middle:g} ‖W‖" if middle < float("inf") else f"none up to {settings.steps[-1]:g} ‖W‖"
