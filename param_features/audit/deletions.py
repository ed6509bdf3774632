"""Taking features out of the weights on inputs that do not use them: is that free?"""

import torch
from jaxtyping import Bool
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.audit.subjects import AuditSubject
from param_features.audit.table import AuditRow
from param_features.fit.formats import LowRank
from param_features.intervene import deltas_of, span_coefficients
from param_features.measure import distance, random_like, read_effects


def deletion(subject: AuditSubject, settings: AuditSettings) -> AuditRow:
    """What projecting unused features out of the weights costs, against used ones and random directions.

    For each row of inputs by itself: features that none of its samples keeps, as many that some keep, and as many random
    directions are projected out of W. Cost: three forward passes of one row for each.
    """
    costs = {"unused": [], "used": [], "random": []}
    for row, used in _rows(subject, settings.n_deletions):
        n = min(settings.n_deleted, int(used.sum()), int((~used).sum()))
        if n == 0:
            continue
        for name, directions in _compared_directions(subject, used, n).items():
            costs[name].append(_cost(subject, row, directions))
    if not costs["unused"]:
        return AuditRow("deletion", None, {}, settings.most_deletion, False, "every row uses all features, or none")
    mean = {name: float(torch.tensor(values).mean()) for name, values in costs.items()}
    return AuditRow(
        "deletion",
        mean["unused"] / max(mean["used"], 1e-30),
        {"used": 1.0, "random": mean["random"] / max(mean["used"], 1e-30)},
        settings.most_deletion,
        False,
        f"mean movement of a row's outputs when up to {settings.n_deleted} features that it does not use are projected out "
        f"of W, {mean['unused']:.3g}, over that of as many that it uses, {mean['used']:.3g}; {len(costs['unused'])} rows",
        ("used",),
    )


def _rows(subject: AuditSubject, n_rows: int) -> list[tuple[int, Bool[Tensor, " all"]]]:
    """Rows of the inputs, and which features some sample of each keeps."""
    if not subject.engine.per_position:
        return list(enumerate(subject.is_kept[:n_rows]))
    mask = subject.inputs.sample_mask
    n_real = [subject.inputs.n_pos] * len(subject.inputs) if mask is None else mask.sum(1).tolist()
    return [(row, is_kept.any(0)) for row, is_kept in enumerate(subject.is_kept.split(n_real)[:n_rows])]


def _compared_directions(subject: AuditSubject, used: Bool[Tensor, " all"], n: int) -> dict[str, LowRank]:
    """The directions of `n` unused features, of as many used ones, and as many random directions."""
    v_out = subject.features.v_out

    def drawn(mask: Bool[Tensor, " all"]) -> list[int]:
        places = mask.nonzero()[:, 0]
        return places[torch.randperm(len(places), generator=subject.generator)[:n]].tolist()

    unused = v_out.rows(drawn(~used))
    return {"unused": unused, "used": v_out.rows(drawn(used)), "random": random_like(unused, subject.generator)}


def _cost(subject: AuditSubject, row: int, directions: LowRank) -> float:
    """How far a row's outputs move when the directions are projected out of the weights."""
    delta = -span_coefficients(directions, subject.engine.subset)
    change = deltas_of(directions, dict(enumerate(delta.tolist())), subject.engine.subset)
    moved_by = distance(subject.features.divergence)
    return float(read_effects(subject.engine, subject.inputs.rows([row]), [change], moved_by).mean())
