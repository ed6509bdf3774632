"""Steps along single features, both ways and ever longer: specificity, sign and linearity."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.audit.subjects import Subject
from param_features.audit.table import AuditRow
from param_features.intervene import deltas_of
from param_features.measure import auroc, distance, mean_value, read_effects
from param_features.problem import CustomDivergence


@dataclass(frozen=True)
class Steps:
    """What every step did to every sample.

    Attributes:
        distance: How far the output moved, [step sign direction sample]; KL(before ‖ after) in nats for KL. Signs: +, −.
        change: By how much D changed, averaged over the references.
    """

    distance: Float[Tensor, "step sign direction sample"]
    change: Float[Tensor, "step sign direction sample"]


def take_steps(subject: Subject, settings: AuditSettings) -> Steps:
    """Step along every chosen feature and every random direction. Cost: two forward passes for each, at each length."""
    n = subject.directions.n_features
    changes = [
        deltas_of(subject.directions, {k: sign * step * subject.norm}, subject.engine.subset)
        for step in settings.steps
        for sign in (1, -1)
        for k in range(n)
    ]
    found = read_effects(subject.engine, subject.inputs, changes, reader(subject))
    found = found.reshape(len(settings.steps), 2, n, -1, 2)
    return Steps(found[..., 0], found[..., 1])


def reader(subject: Subject):
    """Reads how far outputs moved and how D changed, [sample two].

    For the built-in divergences the mean change over references is the change against the mean reference.
    """
    divergence, far = subject.features.divergence, distance(subject.features.divergence)
    references = subject.features.references
    if not isinstance(divergence, CustomDivergence):
        references = references.mean(0, keepdim=True)

    def read(before: Tensor, after: Tensor) -> Float[Tensor, "sample two"]:
        change = mean_value(divergence, after, references) - mean_value(divergence, before, references)
        return torch.stack([far(before, after), change], 1)

    return read


def ranking(moved: Float[Tensor, "direction sample"], top: Bool[Tensor, "sample feature"]) -> Float[Tensor, " direction"]:
    """Area under ROC with which how far each direction's step moved the outputs ranks the paired feature's top inputs."""
    return auroc(moved.T.contiguous(), top).diagonal()


def ratio(moved: Float[Tensor, "direction sample"], top: Bool[Tensor, "sample feature"]) -> Float[Tensor, " direction"]:
    """Mean movement on the paired feature's top inputs over that on all others."""
    on = (moved * top.T).sum(1) / top.T.sum(1)
    off = (moved * ~top.T).sum(1) / (~top.T).sum(1)
    return on / off.clamp(min=1e-30)


def specificity(subject: Subject, steps: Steps, settings: AuditSettings) -> tuple[list[AuditRow], dict]:
    """Whether a step moves the outputs of the feature's top inputs more than others'; read at the shortest step."""
    n, top = len(subject.chosen), subject.top
    moved = steps.distance.mean(1)
    shuffled = top[torch.randperm(len(top), generator=subject.generator)]
    curves = {}
    for name, measure in (("auroc", ranking), ("ratio", ratio)):
        by_step = {
            "features": [measure(each[:n], top) for each in moved],
            "random": [measure(each[n:], top) for each in moved],
            "matched": [measure(each[:n][subject.matched], top) for each in moved],
            "shuffled": [measure(each[:n], shuffled) for each in moved],
        }
        curves |= {f"{name} {who}": tuple(float(v.median()) for v in values) for who, values in by_step.items()}
    margins = {"auroc": {"margin": settings.margin}, "ratio": {"factor": settings.factor}}
    limits = {"auroc": settings.least_auroc, "ratio": settings.least_ratio}
    meanings = {
        "auroc": "area under ROC with which the outputs' movement ranks the feature's top inputs; median over features",
        "ratio": "movement on the feature's top inputs over that on all others; median over features",
    }
    rows = [
        AuditRow(
            f"specificity, {name}",
            curves[f"{name} features"][0],
            {who: curves[f"{name} {who}"][0] for who in ("random", "matched", "shuffled")},
            limits[name],
            True,
            f"{meanings[name]}; ‖δv‖ = {settings.steps[0]:g} ‖W‖. At {settings.steps[-1]:g}: "
            f"{curves[f'{name} features'][-1]:.2f}",
            ("random", "matched", "shuffled"),
            **margins[name],
        )
        for name in ("auroc", "ratio")
    ]
    return rows, curves | {"movement": tuple(float(each[:n].mean()) for each in moved)}


def signs(subject: Subject, steps: Steps, settings: AuditSettings) -> AuditRow:
    """Whether D rises where the activation is positive and falls where it is negative, on the top inputs."""
    n, top = len(subject.chosen), subject.top

    def agreement(change: Float[Tensor, "direction sample"], acts: Float[Tensor, "sample direction"]) -> float:
        agrees = (change.sign() == acts.T.sign()) & top.T
        return float((agrees.sum(1) / top.T.sum(1)).median())

    change = (steps.change[0, 0] - steps.change[0, 1]) / 2
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


def linearity(subject: Subject, steps: Steps, settings: AuditSettings) -> tuple[AuditRow, dict]:
    """How far δ ⟨∇D, v⟩ foretells the change of D as δ grows."""
    n, norm = len(subject.chosen), subject.norm
    by_step = []
    for step, change in zip(settings.steps, steps.change, strict=True):
        foretold = step * norm * subject.slopes.T
        by_step.append(_correlation(torch.cat([foretold, -foretold], 1), torch.cat([change[0], change[1]], 1)))
    found = torch.stack(by_step)
    order = torch.randperm(len(subject.slopes), generator=subject.generator)
    mixed = _correlation(subject.slopes[order].T, steps.change[0, 0])[:n]
    breaks = _breaks(found, settings)
    row = AuditRow(
        "linearity",
        float(found[0, :n].median()),
        {"shuffled": float(mixed.median()), "random": float(found[0, n:].median())},
        settings.least_correlation,
        True,
        f"correlation of D's change with δ⟨∇D, v⟩ over samples at ‖δv‖ = {settings.steps[0]:g} ‖W‖; median over features. "
        f"It falls below {settings.least_correlation:g} at {_in_words(breaks[:n], settings)} (random directions, whose "
        f"effects are smaller: {_in_words(breaks[n:], settings)})",
        ("shuffled",),
    )
    curves = {"linearity features": found[:, :n].median(1).values, "linearity random": found[:, n:].median(1).values}
    return row, {name: tuple(values.tolist()) for name, values in curves.items()}


def _correlation(a: Float[Tensor, "row sample"], b: Float[Tensor, "row sample"]) -> Float[Tensor, " row"]:
    a, b = (values.double() - values.double().mean(1, keepdim=True) for values in (a, b))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-30)


def _breaks(found: Float[Tensor, "step direction"], settings: AuditSettings) -> Float[Tensor, " direction"]:
    """The first step at which the correlation is too low; infinite where it never is."""
    low = found < settings.least_correlation
    steps = torch.tensor(settings.steps, dtype=torch.float64)
    return torch.where(low.any(0), steps[low.double().argmax(0)], torch.inf)


def _in_words(breaks: Float[Tensor, " direction"], settings: AuditSettings) -> str:
    middle = float(breaks.median())
    return f"{middle:g} ‖W‖" if middle < float("inf") else f"none up to {settings.steps[-1]:g} ‖W‖"
