"""What the record of a decomposition says of its settings and of its run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from param_features.fit import Fit
from param_features.fit.components import ComponentSettings
from param_features.gradients import HarvestSettings
from param_features.params import ParamRecord, ParamSubset
from param_features.problem import ModelInputs, Problem, position_record
from param_features.run.request import FORM, METHODS, MethodSettings, form_of

_MEASURE = ("n_references", "n_examples")
"""Settings of a harvest that the record of a fit holds under `measure`."""


def settings_record(harvest: HarvestSettings, fit: MethodSettings | ComponentSettings) -> dict[str, dict[str, Any]]:
    """Write settings as the record of a fit holds them; `settings_of_record` reads them."""
    taken = asdict(harvest)
    return {
        "harvest": {name: value for name, value in taken.items() if name not in _MEASURE},
        "fit": {name: value for name, value in asdict(fit).items() if name not in FORM},
        "measure": {name: taken[name] for name in _MEASURE},
    }


def settings_of_record(record: Mapping[str, Any]) -> tuple[HarvestSettings, MethodSettings | ComponentSettings]:
    """Read the settings of a harvest and a fit from the fit's record."""
    kind = METHODS[record["method"]]
    form = {name: record[name] for name in form_of(kind)}
    return HarvestSettings(**record["harvest"], **record["measure"]), kind(**record["fit"], **form)


def param_records(subset: ParamSubset) -> dict[str, ParamRecord]:
    """The record of every parameter. Cost: hashes their weights."""
    fingerprint = subset.fingerprint()
    return {view.name: ParamRecord.of(view, fingerprint[view.name]) for view in subset.views}


def run_record(problem: Problem, fit: Fit, examples: ModelInputs) -> dict[str, Any]:
    """What was run: steps, the model, and which of its outputs at which positions."""
    output = problem.adapter.given_output
    positions = position_record(problem.positions.given, examples)
    return {
        "steps_done": fit.steps_done,
        "history": fit.history,
        "model": problem.adapter.description,
        "output": None if output is None else _name_of(output),
        **({} if positions == "all" else {"positions": positions}),
    }


def _name_of(function: Callable) -> str:
    return getattr(function, "__name__", type(function).__name__)
