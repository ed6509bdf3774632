"""`pf.estimate`: what a decomposition will take, from short runs of its stages and from shapes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from param_features.errors import SettingError
from param_features.fit import FitSettings, HessianSettings
from param_features.fit.components import ComponentSettings
from param_features.gradients import (
    Harvester,
    HarvestSettings,
    SamplePlan,
    SampleProbe,
    build_engine,
    plan_samples,
    question_of,
)
from param_features.machine import ALONE, free_bytes, held_bytes, own_modes, public
from param_features.params import ParamSpec
from param_features.problem import Problem, Stage, read_model, read_problem, stage_generator
from param_features.run.estimation.component_cost import estimate_components
from param_features.run.estimation.fit_cost import FitProbe
from param_features.run.estimation.harvest_cost import HarvestProbe
from param_features.run.estimation.ladder import Ladder
from param_features.run.estimation.result import Estimate
from param_features.run.estimation.sizes import Sizes
from param_features.run.from_weights import ComponentRun, refuse_foreign
from param_features.run.request import Request, check_request, component_settings, one_count, read_fit, usual_l0

_FEW = 64
"""Samples that stand for all while the fit is timed."""


@public
@own_modes()
def estimate(
    model: Any,
    params: ParamSpec,
    tokens: Any = None,
    *,
    inputs: Any = None,
    n_features: int | Mapping[str, int] | None = None,
    l0: float | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    positions: Any = "all",
    tokenizer: Any = None,
    method: str = "l3d",
    steps: int | None = None,
    seed: int = 0,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: FitSettings | HessianSettings | ComponentSettings | Mapping[str, Any] | str | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Estimate:
    """Say what `pf.decompose` with the same arguments will take, without running it.

    Time comes from short runs of every stage, on the real model and data, extended to their number of batches, steps and
    chunks; memory and disk from shapes, and of a batch of the model from what two and four rows take. It is for
    `method="l3d"` without `background=`, which adds the same once more, and for `"components"`, of which a start from
    gradients is not counted. The model is left exactly as it was.

    Cost: a few seconds; longer where two sequences, or one step with 64 samples, take longer.

    Args:
        model: As for `pf.decompose`; so are all further arguments but the last.
        params: Which parameters.
        tokens: Or texts.
        inputs: Instead of tokens.
        n_features: Number of features.
        l0: Mean number of features kept per sample.
        divergence: What gradients are of.
        reference: What outputs are compared with.
        output: Takes what the model returns.
        positions: Which positions are samples.
        tokenizer: For strings.
        method: `"l3d"` or `"components"`.
        steps: Optimiser steps.
        seed: Of the decomposition.
        n_samples: Samples to harvest.
        harvest: How samples, references and examples are taken.
        fit: Further settings of the fit.
        clock: What time is told by, in seconds; `time.process_time` for CPU seconds.

    Returns:
        Seconds of each stage, bytes of memory at each stage's peak, bytes of a store, and what settings would fit.

    Raises:
        SettingError: A setting is out of range or unknown, or of the Hessian method. All other errors of `pf.decompose` that
            are said before a run are raised as well, but for too little memory, which is what the estimate tells.
    """
    harvest = harvest or HarvestSettings()
    harvest = harvest if n_samples is None else replace(harvest, n_samples=n_samples)
    if method == "components":
        refuse_foreign(reference, harvest, l0=l0)
        read = partial(
            ComponentRun.of,
            model,
            params,
            tokens,
            inputs,
            n_features=n_features,
            divergence=divergence,
            output=output,
            positions=positions,
            tokenizer=tokenizer,
            seed=seed,
            progress=False,
            harvest=harvest,
            fit=component_settings(fit, steps=steps),
            processes=ALONE,
        )
        return estimate_components(read, clock)
    if method != "l3d":
        raise SettingError(f"method={method!r}: pf.estimate is for 'l3d' and 'components'.")
    start, n_features = clock(), one_count(n_features, method)
    reference = "sample" if reference is None else reference
    l0 = usual_l0(n_features) if l0 is None else float(l0)
    fit = _with_steps(read_fit("l3d", fit) or FitSettings(), steps)
    chosen = read_model(model, params, tokenizer=tokenizer, output=output)
    base = held_bytes(chosen.subset.device)
    check_request(Request("l3d", n_features, l0, seed, progress=False), fit, chosen.subset)
    problem = read_problem(chosen, tokens, inputs, divergence=divergence, reference=reference, positions=positions)
    probe = _harvest_probe(problem, harvest, n_features, seed)
    setup = clock() - start
    sizes = _sizes(probe.plan, Sizes(probe.like, 0, 0, n_features, fit.rank, l0, fit, probe.batch_bytes))
    ladder = Ladder(clock)
    seconds = {"setup": setup, "harvest": probe.seconds(ladder)}
    few_samples = probe.taken(max(2, -(-_FEW // probe.plan.n_slots)), probe.plan.n_slots)
    fit_probe = FitProbe(few_samples, sizes, chosen.subset, fit.format, ladder)
    seconds |= {"fit": fit_probe.fit_seconds, "measure": fit_probe.measure_seconds}
    device = chosen.subset.device
    touched = max(0, held_bytes(device) - base)
    return Estimate(seconds, sizes, base, touched, free_bytes(device))


def _with_steps(fit: FitSettings | HessianSettings, steps: int | None) -> FitSettings:
    if not isinstance(fit, FitSettings):
        raise SettingError(f"fit is a {type(fit).__name__}. pf.estimate is for method='l3d': give a pf.FitSettings(…).")
    return fit if steps is None else replace(fit, steps=steps)


def _harvest_probe(problem: Problem, settings: HarvestSettings, n_features: int, seed: int) -> HarvestProbe:
    """The harvest of the run, not yet begun."""
    engine = build_engine(problem, lambda _: None)
    question = question_of(problem, engine, settings.n_references, stage_generator(seed, Stage.REFERENCES))
    harvester = Harvester(SampleProbe(engine, problem.data), question.divergence, question.drawn, settings)
    plan = plan_samples(problem, harvester.settings_that_fit, n_features, stage_generator(seed, Stage.PLAN))
    return HarvestProbe(problem, harvester, plan)


def _sizes(plan: SamplePlan, sizes: Sizes) -> Sizes:
    return replace(sizes, n_train=len(plan.train) * plan.n_slots, n_held_out=len(plan.held_out) * plan.n_slots)
