"""`pf.estimate(method="components")`: what steps and metrics take, from few of them."""

import time
from collections.abc import Callable

import torch

from param_features.fit.components import ComponentDictionary
from param_features.machine import free_bytes, held_bytes
from param_features.measure import component_metrics
from param_features.run.estimation.component_sizes import StepProbe
from param_features.run.estimation.ladder import Ladder
from param_features.run.estimation.result import Estimate
from param_features.run.from_weights import ComponentRun

_SAMPLES = 2048
"""About so many are measured."""

_ASCENTS = 80
"""Steps of the adversary that measures."""


def estimate_components(read: Callable[[], ComponentRun], clock: Callable[[], float] = time.perf_counter) -> Estimate:
    """Time, memory and disk of a fit of components.

    Args:
        read: Reads and checks what was given.
        clock: What time is told by.
    """
    start = clock()
    run = read()
    device = run.problem.subset.device
    base, ladder = held_bytes(device), Ladder(clock)
    probe = StepProbe(run)
    full = probe.full_rows
    setup = clock() - start
    sizes = probe.sizes
    step = ladder.seconds(probe.step, full, least=min(2, full), runs=2)
    seconds = {"setup": setup, "fit": step * run.fit.steps, "measure": _measure_seconds(probe, ladder)}
    return Estimate(seconds, sizes, base, max(0, held_bytes(device) - base), free_bytes(device))


def _measure_seconds(probe: StepProbe, ladder: Ladder) -> float:
    """The metrics with one step of the adversary, and the others at the time of one."""
    run, trained = probe.run, probe.trainer.result().dictionary
    dictionary = ComponentDictionary(trained.parts, trained.net)
    held_out = run.problem.data.rows(run.plan.held_out)
    full = min(len(held_out), max(2, _SAMPLES // held_out.n_pos))

    def measured(n_rows: int, n_steps: int = 1) -> None:
        component_metrics(
            dictionary,
            run.engine,
            run.problem.divergence,
            held_out,
            generator=torch.Generator().manual_seed(0),
            n_rows=n_rows,
            steps=(n_steps,),
        )

    rest, some = ladder.seconds(measured, full, least=min(2, full)), min(8, full)
    few, more = (ladder.timed(lambda n, k=k: measured(n, k), some) for k in (1, 5))
    return rest + (_ASCENTS - 1) * max(0.0, more - few) / 4 * full / some
