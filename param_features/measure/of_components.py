"""Metrics of components on held-out rows, never without their controls."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from param_features.fit.components import ComponentDictionary, MaskedModel, Parts
from param_features.fitted import spread_name, spread_of_ratio
from param_features.gradients import GradientEngine, sites_of
from param_features.machine import typed
from param_features.measure.component_controls import each_control
from param_features.measure.masked_rows import (
    Candidate,
    MaskedRows,
    Outcome,
    all_zero,
    importance_as_mask,
    rounded,
    whole_without_remainder,
)
from param_features.problem import KL, Divergence, ModelInputs

_SAMPLES = 2**11
_SITE_POSITIONS = 2**16
_USAGE_SAMPLES = 2**15
_ALIVE = 1e-6

_MONITORS = {
    "unmasked": whole_without_remainder,
    "importance_as_mask": importance_as_mask,
    "rounded": rounded,
    "all_zero": all_zero,
}


@typed
def component_metrics(
    dictionary: ComponentDictionary,
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    *,
    generator: torch.Generator,
    n_rows: int | None = None,
    n_draws: int = 4,
    steps: Sequence[int] = (20, 40, 80),
) -> dict[str, float]:
    """Score components and their controls on the same held-out rows.

    D is in the divergence's unit, for squared error the mean over an output's numbers; the model's own output is what it is
    compared with. Δ is off but where its mask is drawn or an adversary's.

    Cost: about 40 forward passes of `n_rows` rows, a forward and a backward pass for each of the adversary's 80 steps, and
    one forward pass of up to 32,768 samples: with the number of rows left open less than a tenth of 2,000 steps' training.
    Memory: the rows' outputs, and a number for each of their positions and components.

    Args:
        dictionary: The components.
        engine: Runs the model.
        divergence: Of outputs under masks from the model's own.
        data: Held-out rows.
        generator: Draws masks, sources and controls.
        n_rows: How many rows to measure, spread evenly; about 2,048 samples, or 65,536 of a matrix's positions, by default.
        n_draws: Sets of stochastic masks that are averaged.
        steps: After how many steps of the adversary to report.

    Returns:
        `unmasked`, `stochastic`, `importance_as_mask`, `rounded`, `all_zero`, `adversarial_20`, `_40`, `_80`: D. `loss_…` of
        each, and `loss_clean`: mean cross-entropy of the next token in nats, for logits of tokens; `loss_unrecovered`: that
        of `rounded` above clean as a share of that of `all_zero` above clean. `l0`, `l0_above_0.1`, and `l0/<matrix>`:
        components of importance above 0 (above 0.1) per position, summed over matrices. `alive`, and `alive/<matrix>`: those
        of mean importance above 1e-6. `faithfulness`: ‖Δ‖ / ‖W‖. `control_…` and `stochastic_control_…`: D of controls at
        each matrix's l0 under `rounded` and `stochastic`, with `spread_…` the standard errors of the share by which the fit
        lies below, rows taken as independent; of singular directions under the adversary's first steps too.
    """
    model = MaskedModel(engine, sites_of(engine))
    with model.held(), torch.no_grad():
        values = _usage(dictionary, model, _spread(data, max(2, _USAGE_SAMPLES // data.n_pos)))
        rows = MaskedRows(model, divergence, _measured_rows(model, data, n_rows))
        candidate = rows.candidate(dictionary)
        values |= _l0(rows, candidate) | {"faithfulness": _faithfulness(rows, candidate)}
        found = {name: rows.masked(candidate, masks) for name, masks in _MONITORS.items()}
        found["stochastic"] = rows.stochastic(candidate, n_draws, generator)
        worst = rows.adversarial(candidate, steps, generator)
        found |= {f"adversarial_{n}": outcome for n, outcome in worst.items()}
        controls = _controls(rows, candidate, n_draws, min(steps), generator)
    values |= {name: outcome.mean for name, outcome in (found | controls).items()}
    values |= _spreads(rows, found, controls) | _losses(rows.clean_outcome(), found | controls)
    return values | {"n_features": dictionary.n_features, "n_held_out": len(rows.row_of_sample)}


def _controls(
    rows: MaskedRows, candidate: Candidate, n_draws: int, n_steps: int, generator: torch.Generator
) -> dict[str, Outcome]:
    """What each control does under rounded and stochastic masks, and singular directions under an adversary's."""
    found = {}
    for name, control in each_control(rows, candidate, generator):
        found[name] = rows.masked(control, rounded)
        found[f"stochastic_{name}"] = rows.stochastic(control, n_draws, generator)
        if name == "control_svd_w":
            found[f"adversarial_{n_steps}_{name}"] = rows.adversarial(control, (n_steps,), generator)[n_steps]
    return found


def _spreads(rows: MaskedRows, found: Mapping[str, Outcome], controls: Mapping[str, Outcome]) -> dict[str, float]:
    """Standard errors of the share by which the fit lies below each control, but for an adversary's largest D."""
    spreads = {}
    for name, control in controls.items():
        compared = name.partition("control_")[0].removesuffix("_") or "rounded"
        if not compared.startswith("adversarial"):
            spreads[spread_name(name)] = spread_of_ratio(rows.by_row(found[compared]), rows.by_row(control))
    return spreads


def _measured_rows(model: MaskedModel, data: ModelInputs, n_rows: int | None) -> ModelInputs:
    if n_rows is None:
        applied = model.clean(data.rows(slice(0, 1))).applied
        n_pos = max(values.shape[1] for values in applied.values())
        n_rows = max(2, min(_SAMPLES // data.n_pos, _SITE_POSITIONS // n_pos))
    return _spread(data, n_rows)


def _spread(data: ModelInputs, n_rows: int) -> ModelInputs:
    """At most so many rows, evenly over all."""
    return data if n_rows >= len(data) else data.rows(torch.linspace(0, len(data) - 1, n_rows).round().long())


@torch.no_grad()
def alive_parts(dictionary: ComponentDictionary, engine: GradientEngine, data: ModelInputs) -> dict[str, Parts]:
    """The components whose mean importance on some rows is above 1e-6, by matrix. Cost: a forward pass of the rows."""
    model = MaskedModel(engine, sites_of(engine))
    with model.held():
        alive = _alive(dictionary, model, data)
    return {name: Parts(parts.U[alive[name]], parts.V[alive[name]]) for name, parts in dictionary.parts.items()}


def _usage(dictionary: ComponentDictionary, model: MaskedModel, data: ModelInputs) -> dict[str, float]:
    alive = {f"alive/{name}": float(here.sum()) for name, here in _alive(dictionary, model, data).items()}
    return {"alive": sum(alive.values())} | alive


def _alive(dictionary: ComponentDictionary, model: MaskedModel, data: ModelInputs) -> dict[str, Bool[Tensor, " component"]]:
    """Which components are needed anywhere."""
    totals = {name: torch.zeros(parts.n, dtype=torch.float64) for name, parts in dictionary.parts.items()}
    n_real = dict.fromkeys(totals, 0)
    for rows in torch.arange(len(data)).split(max(1, 1024 // data.n_pos)):
        chunk = MaskedRows(model, KL(), data.rows(rows))
        for name, g in chunk.candidate(dictionary).importances.items():
            totals[name] += g.flatten(0, 1).sum(0, dtype=torch.float64).cpu()
            n_real[name] += int(chunk.real(name).sum())
    return {name: total / max(1, n_real[name]) > _ALIVE for name, total in totals.items()}


def _l0(rows: MaskedRows, candidate: Candidate) -> dict[str, float]:
    def mean(above: float) -> Mapping[str, float]:
        counts = {name: (g > above).sum(-1)[rows.real(name)] for name, g in candidate.importances.items()}
        return {name: float(count.double().mean()) for name, count in counts.items()}

    by_site = mean(0)
    totals = {"l0": sum(by_site.values()), "l0_above_0.1": sum(mean(0.1).values())}
    return totals | {f"l0/{name}": value for name, value in by_site.items()}


def _faithfulness(rows: MaskedRows, candidate: Candidate) -> float:
    def square(tensors: list[Tensor]) -> float:
        return sum(float(tensor.double().square().sum()) for tensor in tensors)

    rests = [parts.remainder(rows.weights[name]) for name, parts in candidate.parts.items()]
    return (square(rests) / max(square(list(rows.weights.values())), 1e-30)) ** 0.5


def _losses(clean: Outcome, found: Mapping[str, Outcome]) -> dict[str, float]:
    if clean.loss != clean.loss:
        return {}
    losses = {"loss_clean": clean.loss} | {f"loss_{name}": outcome.loss for name, outcome in found.items()}
    cost = losses["loss_all_zero"] - clean.loss
    return losses | {"loss_unrecovered": (losses["loss_rounded"] - clean.loss) / cost if cost else float("nan")}
