"""Components of toys whose matrices are known sums of rank-1 parts, scored beside random parts and singular directions.

python -m benchmarks.components_toys [--toy NAME] [--seeds N] [--steps N]     a toy's table at a time, on one thread

A cell over the seeds is a median; `worst` is the seed furthest from what would be right. Random parts are as many as the
components, and singular directions the leading ones of each matrix. ML2R, |cosine| and the number matched pair whole rank-1
matrices one to one. The published MMCS stands beside them because random parts do well at it too.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch

import param_features as pf
from benchmarks.toys.component_scores import (
    Parts,
    random_parts,
    score_by_matrix,
    single_feature_numbers,
    singular_parts,
)
from benchmarks.toys.component_toys import ComponentToy, residual_mlp, superposition_layers
from param_features.fit.components import ComponentSettings
from param_features.problem import ModelInputs

_TOY = ComponentSettings(
    steps=2000,
    batch_size=256,
    lr=1e-2,
    lr_end=0.0,
    importance="site",
    hidden=64,
    importance_weight=3e-3,
    p=1.0,
    p_end=1.0,
    one_at_a_time_weight=2.0,
    faithfulness_weight=10.0,
)
_WIDE = replace(_TOY, hidden=None, importance_weight=5e-4, lr=5e-3, steps=1500, faithfulness_weight=1e3)
_RESIDUAL = replace(
    ComponentSettings.preset("spd"), steps=600, batch_size=256, lr=3e-3, importance_weight=3e-5, start="gradients"
)
_RIGHT = {"ml2r": 1.0, "mean cosine": 1.0, "min cosine": 1.0, "published mmcs": 1.0, "l0": 1.0, "l0 above 0.1": 1.0}
_ALIVE = 1e-6
_TELLING = ("ml2r", "min cosine", "matched", "l0", "CPU seconds")
_MEASURED = ("unmasked", "stochastic", "adversarial_20", "adversarial_40", "adversarial_80", "all_zero")


@dataclass(frozen=True)
class Case:
    """A toy, how many components each of its matrices gets, and the settings of the fit."""

    toy: Callable[..., ComponentToy]
    n_components: int
    settings: ComponentSettings


CASES = {
    "tms 5-2": Case(superposition_layers, 20, _TOY),
    "tms 40-10": Case(partial(superposition_layers, 40, 10), 200, _WIDE),
    "tms 5-2 identity": Case(partial(superposition_layers, has_identity=True), 20, _TOY),
    "residual 1": Case(residual_mlp, 100, _RESIDUAL),
    "residual 2": Case(partial(residual_mlp, 2), 400, _RESIDUAL),
}

Numbers = dict[tuple[str, str], float]
"""By matrix and name of the number."""


def main() -> None:
    """Run the toys that are asked for, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", choices=CASES, action="append", help="this toy; may be repeated")
    parser.add_argument("--seeds", type=int, default=10, metavar="N", help="runs of every toy")
    parser.add_argument("--steps", type=int, metavar="N", help="in place of the toy's own number of steps")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # these tensors are too small for more, and CPU seconds compare
    for name in asked.toy or CASES:
        case = CASES[name]
        settings = case.settings if asked.steps is None else replace(case.settings, steps=asked.steps)
        runs = []
        for seed in range(asked.seeds):
            runs.append(run(replace(case, settings=settings), seed))
            print(f"{name}, seed {seed}: {line(runs[-1]['components'])}", file=sys.stderr, flush=True)
        print(f"{name}, {case.n_components} components a matrix, {settings.steps} steps, seeds 0 to {asked.seeds - 1}\n")
        print(f"{table(runs)}\n", flush=True)


def run(case: Case, seed: int) -> dict[str, Numbers]:
    """The numbers of the components, of random parts and of singular directions, for one seed of toy and fit."""
    toy = case.toy(seed=seed)
    start = time.process_time()
    components = pf.decompose(
        toy.model,
        toy.params,
        inputs=toy.inputs,
        method="components",
        n_features=case.n_components,
        divergence="se",
        fit=case.settings,
        seed=seed,
        progress=False,
    )
    seconds = time.process_time() - start
    parts = {name: (each.U, each.V) for name, each in components.dictionary.parts.items()}
    generator = torch.Generator().manual_seed(seed)
    random = {name: random_parts(each, generator) for name, each in parts.items()}
    singular = {name: singular_parts(matrix, case.n_components) for name, matrix in toy.matrices.items()}
    sets = {"components": parts, "random parts": random, "singular directions": singular}
    numbers = {who: scores(toy, each) for who, each in sets.items()}
    importances, _ = components.dictionary.by_site(components.engine, ModelInputs((toy.probes,), {}))
    for name, values in importances.items():
        numbers["components"] |= {(name, key): value for key, value in needed(values[:, 0]).items()}
        rest = toy.matrices[name] - parts[name][0].T @ parts[name][1]
        numbers["components"][name, "faithfulness"] = float(rest.norm() / toy.matrices[name].norm())
    for key in _MEASURED:
        numbers["components"]["all", key] = components.metrics[key]
    numbers["components"]["all", "CPU seconds"] = seconds
    return numbers


def scores(toy: ComponentToy, parts: Mapping[str, Parts]) -> Numbers:
    """Every number that parts alone have."""
    found = score_by_matrix(toy.truth, parts, toy.directions)
    return {(name, key): value for name, each in found.items() for key, value in each.numbers.items()}


def needed(importances: torch.Tensor) -> dict[str, float]:
    """The numbers of single-feature inputs, and how many parts any of these needs."""
    alive = {"needed by any": float((importances > _ALIVE).any(0).sum())}
    return {**single_feature_numbers(importances), **alive}


def line(numbers: Numbers) -> str:
    """The numbers that tell most, of one seed."""
    return ", ".join(f"{matrix} {key} {_text(value)}" for (matrix, key), value in numbers.items() if key in _TELLING)


def table(runs: list[dict[str, Numbers]]) -> str:
    """A row for each number of each matrix, over the seeds."""
    lines = ["| matrix | number | components | worst | random parts | singular directions |", "|---|---|---|---|---|---|"]
    rows = list(runs[0]["components"])
    by_matrix = list(dict.fromkeys(matrix for matrix, _ in rows))
    for matrix, number in sorted(rows, key=lambda row: by_matrix.index(row[0])):
        values = [each["components"][matrix, number] for each in runs]
        controls = [
            _median(each[who].get((matrix, number)) for each in runs) for who in ("random parts", "singular directions")
        ]
        cells = [_text(median(values)), _text(_worst(number, values)), *controls]
        lines.append(f"| {matrix} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _median(values) -> str:
    numbers = [value for value in values if value is not None]
    return _text(median(numbers)) if numbers else ""


def _worst(number: str, values: list[float]) -> float:
    if number == "matched":
        return min(values)
    right = _RIGHT.get(number, 0.0)
    return max(values, key=lambda value: abs(value - right))


def _text(value: float) -> str:
    return f"{value:.3f}" if 0.0005 < abs(value) < 1000 or value == 0 else f"{value:.1e}"


if __name__ == "__main__":
    main()
