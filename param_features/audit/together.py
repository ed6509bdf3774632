"""Several features at once: does a joint step do what the single ones do, and what does the worst combination do?"""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.audit.stepping import StepEffects, effect_reader
from param_features.audit.subjects import AuditSubject
from param_features.audit.table import AuditRow
from param_features.fit.formats import LowRank
from param_features.gradients import differentiable
from param_features.intervene import combined, deltas_of, moved
from param_features.measure import distance, outputs_of, random_like, read_effects
from param_features.params import held_still
from param_features.problem import ModelInputs

_ROWS = 16


def additivity(subject: AuditSubject, effects: StepEffects, settings: AuditSettings) -> AuditRow:
    """Joint effect against the sum of single ones: features that fire together, others as frequent, random directions."""
    n, place = len(subject.chosen), len(settings.steps) // 2
    size = min(settings.set_size, n)
    together = _fire_together(subject, size, settings.n_sets)
    matched = [[first, *(subject.matched[member] for member in partners)] for first, *partners in together]
    at_random = [[n + member for member in members] for members in together]
    gaps = {
        name: _gaps(subject, effects.change[place, 0], sets, settings.steps[place])
        for name, sets in {"together": together, "matched": matched, "random": at_random}.items()
    }
    shuffled = _gaps(subject, effects.change[place, 0], together, settings.steps[place], single_sets=matched)
    return AuditRow(
        "additivity",
        gaps.pop("together"),
        gaps | {"shuffled": shuffled},
        settings.most_gap,
        False,
        f"‖joint − sum of single changes of D‖ / ‖joint‖ over samples, for {size} features that fire together, each at "
        f"‖δv‖ = {settings.steps[place]:g} ‖W‖; median over sets. matched: others as frequent; random: directions, whose "
        "effects are smaller; shuffled: against the sum of the matched ones",
        ("shuffled",),
    )


def _fire_together(subject: AuditSubject, size: int, n_sets: int) -> list[list[int]]:
    """For some of the chosen features, each with those that are kept on the most of the same samples."""
    is_kept = subject.is_kept[:, subject.chosen].double()
    joint = is_kept.T @ is_kept
    joint.fill_diagonal_(-1)
    firsts = torch.linspace(0, len(joint) - 1, min(n_sets, len(joint))).round().long().tolist()
    return [[first, *joint[first].topk(size - 1).indices.tolist()] for first in firsts]


def _gaps(
    subject: AuditSubject,
    single: Float[Tensor, "direction sample"],
    sets: list[list[int]],
    step: float,
    *,
    single_sets: list[list[int]] | None = None,
) -> float:
    """Median over sets of the gap between the joint change and the sum of single ones, those of `single_sets` if given."""
    delta = step * subject.norm
    changes = [deltas_of(subject.directions, dict.fromkeys(set(members), delta), subject.engine.subset) for members in sets]
    joint = read_effects(subject.engine, subject.inputs, changes, effect_reader(subject))[..., 1].double()
    sums = torch.stack([single[sorted(set(members))].double().sum(0) for members in (single_sets or sets)])
    return float(((joint - sums).norm(dim=1) / joint.norm(dim=1).clamp(min=1e-30)).median())


def adversary(subject: AuditSubject, settings: AuditSettings) -> AuditRow:
    """The worst combination of features that some rows hardly use, against the worst of those that they use most."""
    rows = subject.inputs.rows(slice(0, _ROWS))
    n_samples = _n_samples(rows) if subject.engine.per_position else len(rows)
    density = subject.is_kept[:n_samples].double().mean(0)
    n = min(settings.n_deleted, len(density) // 2)
    order, v_out = density.argsort(), subject.features.v_out
    sets = {
        "unused": v_out.rows(order[:n].tolist()),
        "used": v_out.rows(order[-n:].tolist()),
        "random": random_like(v_out.rows(order[:n].tolist()), subject.generator),
    }
    worst = {
        name: _worst(subject, rows, directions, settings, n_climbs=settings.n_climbs) for name, directions in sets.items()
    }
    no_search = _worst(subject, rows, sets["unused"], settings, n_climbs=0)
    scale = max(worst["used"], 1e-30)
    return AuditRow(
        "adversary",
        worst["unused"] / scale,
        {"used": 1.0, "random": worst["random"] / scale, "no search": no_search / scale},
        settings.most_adversary,
        False,
        f"mean movement of {len(rows)} rows' outputs by the worst combination of the {n} features that they use least (kept "
        f"on {float(density[order[:n]].mean()):.2%} of their samples), {worst['unused']:.3g}, over that of the {n} they use "
        f"most, {worst['used']:.3g}; ‖Σ δv‖ = {settings.norm:g} ‖W‖. Search: {settings.n_starts} starts, "
        f"{settings.n_climbs} gradient steps each; no search: the starts alone",
        ("used",),
    )


def _n_samples(rows: ModelInputs) -> int:
    """How many real positions the rows have."""
    return len(rows) * rows.n_pos if rows.sample_mask is None else int(rows.sample_mask.sum())


def _worst(
    subject: AuditSubject, rows: ModelInputs, directions: LowRank, settings: AuditSettings, *, n_climbs: int
) -> float:
    """The largest mean movement that projected gradient ascent finds; without climbs, that of the random starts alone."""
    generator = torch.Generator().manual_seed(settings.seed)
    gram = directions.gram().double()
    radius, largest = settings.norm * subject.norm, 0.0
    for _ in range(settings.n_starts):
        delta = torch.randn(directions.n_features, generator=generator, dtype=torch.float64).to(gram)
        delta = _scaled(delta, gram, radius)
        value, slope = _movement(subject, rows, directions, delta, has_slope=n_climbs > 0)
        largest = max(largest, value)
        for climb in range(n_climbs):
            step = radius * 0.5 * (1 - climb / n_climbs)
            delta = _scaled(delta + _scaled(slope, gram, step), gram, radius)
            value, slope = _movement(subject, rows, directions, delta, has_slope=True)
            largest = max(largest, value)
    return largest


def _scaled(delta: Float[Tensor, " feature"], gram: Tensor, norm: float) -> Float[Tensor, " feature"]:
    """The coefficients, so that ‖Σ δ v‖ is the given norm."""
    return delta * (norm / (delta @ gram @ delta).clamp(min=1e-30).sqrt())


def _movement(
    subject: AuditSubject, rows: ModelInputs, directions: LowRank, delta: Float[Tensor, " feature"], *, has_slope: bool
) -> tuple[float, Float[Tensor, " feature"]]:
    """Mean movement of the rows' outputs, and its gradient in the coefficients."""
    engine, moved_by = subject.engine, distance(subject.features.divergence)
    leaf = delta.detach().requires_grad_(has_slope)
    names = dict(zip(directions.factors, engine.subset.names, strict=True))
    changed = moved(engine.subset, combined(directions.renamed(names), leaf))
    with held_still(engine.adapter.module):
        with torch.no_grad():
            before = outputs_of(engine, rows)
        with torch.set_grad_enabled(has_slope), differentiable(engine.subset, changed):
            value = moved_by(before, outputs_of(engine, rows)).mean()
            slope = torch.autograd.grad(value, leaf)[0] if has_slope else torch.zeros_like(delta)
    return float(value.detach()), slope
