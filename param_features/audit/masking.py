"""Switching parts of the weights off where they are not needed: one by one, together, and as an adversary likes."""

import math
from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.audit.subjects import spread_by
from param_features.audit.table import AuditRow
from param_features.fit.components import ComponentDictionary, MaskedModel, Masks, Parts
from param_features.fitted import Fitted
from param_features.gradients import sites_of
from param_features.intervene import span_coefficients
from param_features.measure import Candidate, MaskedRows, random_parts, rounded, shuffled, singular_parts, strongest
from param_features.problem import ModelInputs

SINGULAR, RANDOM = "singular directions", "random directions"

ONE_BY_ONE, TOGETHER, ADVERSARY = "deletion, one by one", "deletion, together", "adversary, by masks"
_MEANINGS = {
    ONE_BY_ONE: "D for each position at which a part is off where it is not needed, over D for each where it is needed; "
    "random: with a random rank-1 matrix of the part's norm taken away there",
    TOGETHER: "D with everything off that is not needed, and Δ, over D with everything off that is needed; shuffled: with "
    "what another position needs",
    ADVERSARY: "largest D of an adversary that masks what is not needed, and Δ, over that of one that masks what is "
    "needed; shuffled: with what another position needs; no search: masks drawn at random",
}

Numbers = dict[str, dict[str, float]]
"""For each claim the number of the subject, as `""`, and of its own controls."""


def masking_rows(fits: Mapping[str, Fitted], inputs: ModelInputs, settings: AuditSettings) -> list[AuditRow]:
    """Three claims about the first of some fits, with the numbers of the others, which stand for other methods, beside it.

    Two more methods are always beside it: singular directions of the same matrices, and random directions that sum to them;
    each has as many parts needed at each matrix as the first fit. Features that are directions stand for what of the weights
    is nearest to them, and are needed throughout an input of which they are kept anywhere.

    Cost: for each method three passes of `n_rows` rows for each of `n_features` parts, and three adversaries' searches.
    """
    found: dict[str, Numbers] = {}
    for label, fit in fits.items():
        needed = None if isinstance(fit.dictionary, ComponentDictionary) else _kept(fit, inputs)
        engine = fit.bound_engine("audit")
        model = MaskedModel(engine, sites_of(engine))
        with model.held(), torch.no_grad():
            rows = MaskedRows(model, fit.divergence, inputs)
            candidate = _candidate(fit, rows, needed)
            found[label] = _numbers(rows, candidate, settings)
            if len(found) == 1:
                controls = _beside(rows, candidate, torch.Generator().manual_seed(settings.seed))
                found |= {name: _numbers(rows, control, settings) for name, control in controls}
    own = found.pop(next(iter(fits)))
    return [
        _row(claim, own[claim], {name: numbers[claim][""] for name, numbers in found.items()}, settings) for claim in own
    ]


def _row(claim: str, own: Mapping[str, float], methods: Mapping[str, float], settings: AuditSettings) -> AuditRow:
    found = {"needed": 1.0, **{name: value for name, value in own.items() if name}, **methods}
    controls = {name: value for name, value in found.items() if not math.isnan(value)}
    limit = settings.most_adversary if claim == ADVERSARY else settings.most_deletion
    beaten = ("needed", *(name for name in ("random", "shuffled") if name in own))
    value = None if math.isnan(own[""]) else own[""]
    meaning = _MEANINGS[claim] if value is not None else "every part is needed everywhere, or nowhere"
    return AuditRow(claim, value, controls, limit, False, meaning, beaten)


def _kept(fit: Fitted, inputs: ModelInputs) -> Bool[Tensor, "row feature"]:
    """Which features are kept anywhere in each row."""
    is_kept = fit.dictionary.read(fit.bound_engine("audit"), fit.question, inputs).codes != 0
    return is_kept.any(1) if is_kept.dim() == 3 else is_kept


def _candidate(fit: Fitted, rows: MaskedRows, needed: Bool[Tensor, "row feature"] | None) -> Candidate:
    if isinstance(fit.dictionary, ComponentDictionary):
        return rows.candidate(fit.dictionary)
    assert needed is not None
    share = span_coefficients(fit.v_out, fit.bound_engine("audit").subset)
    parts, importances = {}, {}
    for (left, right), (name, weight) in zip(fit.v_out.factors.values(), rows.weights.items(), strict=True):
        U, V = (side.mT.flatten(0, 1).to(weight) for side in (left * share.to(left)[:, None, None], right))
        parts[name] = Parts(U, V)
        where = needed.repeat_interleave(left.shape[2], 1).to(weight).unsqueeze(1)
        importances[name] = where * rows.real(name).unsqueeze(-1)
    return Candidate(parts, importances)


def _beside(rows: MaskedRows, candidate: Candidate, generator: torch.Generator) -> Iterator[tuple[str, Candidate]]:
    for title in (SINGULAR, RANDOM):
        kept = {}
        for name, g in candidate.importances.items():
            weight = rows.weights[name]
            parts = singular_parts(weight) if title == SINGULAR else random_parts(weight, g.shape[2], generator)
            kept[name] = strongest(rows, name, parts, int((g > 0).sum()))
        yield title, Candidate({name: of[0] for name, of in kept.items()}, {name: of[1] for name, of in kept.items()})


def _numbers(rows: MaskedRows, candidate: Candidate, settings: AuditSettings) -> Numbers:
    generator = torch.Generator().manual_seed(settings.seed)
    mixed = shuffled(rows, candidate, generator)
    return {
        ONE_BY_ONE: _one_by_one(rows, candidate, settings, generator),
        TOGETHER: _together(rows, candidate, mixed),
        ADVERSARY: _adversary(rows, candidate, mixed, settings),
    }


def _one_by_one(
    rows: MaskedRows, candidate: Candidate, settings: AuditSettings, generator: torch.Generator
) -> dict[str, float]:
    """For some parts that are needed here and not there, from the rarest to the most frequent."""
    density = torch.cat([(g > 0)[rows.real(name)].double().mean(0).cpu() for name, g in candidate.importances.items()])
    places = [(name, k) for name, parts in candidate.parts.items() for k in range(parts.n)]
    density = torch.where(density < 1, density, 0)
    cost = {"needed": 0.0, "": 0.0, "random": 0.0}
    for place in spread_by(density, settings.n_features) if bool(density.any()) else []:
        name, k = places[place]
        part = Parts(candidate.parts[name].U[k : k + 1], candidate.parts[name].V[k : k + 1])
        is_needed, real = candidate.importances[name][..., k : k + 1] > 0, rows.real(name).unsqueeze(-1)
        noise = _random_of_norm(part, generator)
        for title, taken, where in (
            ("needed", part, is_needed),
            ("", part, real & ~is_needed),
            ("random", noise, real & ~is_needed),
        ):
            off = Candidate({name: taken}, {name: (~where).to(part.U)})
            cost[title] += float(rows.masked(off, Masks).distances.sum()) / max(1, int(where.sum()))
    scale = max(cost.pop("needed"), 1e-30)
    return {title: value / scale if bool(density.any()) else float("nan") for title, value in cost.items()}


def _random_of_norm(part: Parts, generator: torch.Generator) -> Parts:
    U, V = (torch.randn(side.shape, generator=generator).to(side) for side in (part.U, part.V))
    norm = part.U.norm() * part.V.norm()
    return Parts(U * norm / (U.norm() * V.norm()), V)


def _together(rows: MaskedRows, candidate: Candidate, mixed: Candidate) -> dict[str, float]:
    needed_off = Candidate(candidate.parts, {name: (g <= 0).to(g) for name, g in candidate.importances.items()})
    scale = max(rows.masked(needed_off, Masks).mean, 1e-30)
    return {"": rows.masked(candidate, rounded).mean / scale, "shuffled": rows.masked(mixed, rounded).mean / scale}


def _adversary(rows: MaskedRows, candidate: Candidate, mixed: Candidate, settings: AuditSettings) -> dict[str, float]:
    def worst(of: Candidate) -> float:
        generator = torch.Generator().manual_seed(settings.seed)
        starts = [rows.adversarial(of, (settings.n_climbs,), generator) for _ in range(settings.n_starts)]
        return max(found[settings.n_climbs].mean for found in starts)

    needed = Candidate(candidate.parts, {name: 1 - g for name, g in candidate.importances.items()})
    scale = max(worst(needed), 1e-30)
    drawn = rows.stochastic(candidate, settings.n_starts, torch.Generator().manual_seed(settings.seed))
    return {"": worst(candidate) / scale, "shuffled": worst(mixed) / scale, "no search": drawn.mean / scale}
