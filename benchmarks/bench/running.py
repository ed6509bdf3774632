"""Run the suite: show each toy's table as it is done, then save all with every seed's values."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.bench.suite import SUITE
from benchmarks.bench.table import run_case, to_text
from param_features.errors import MissingExtraError, SettingError, nearest


def run_suite(
    seeds: Sequence[int],
    *,
    out: Path,
    is_quick: bool = False,
    only: Collection[str] | None = None,
    show: Callable[[str], object] = print,
) -> None:
    """Every toy with each seed; a toy whose optional library is missing is left out, and that is shown.

    Args:
        seeds: One run of each toy for each.
        out: Folder for table.md and values.json.
        is_quick: Whether to take smaller toys.
        only: Names of cases; all of them when None or empty.
        show: Takes each table.

    Raises:
        SettingError: `only` names a toy that there is not.
    """
    names = [case.name for case in SUITE]
    for name in set(only or ()) - set(names):
        raise SettingError(f"There is no toy {name!r}. Toys: {', '.join(names)}; nearest: {nearest(name, names)}.")
    torch.set_num_threads(1)  # these tensors are too small for more, and CPU seconds compare
    rows, tables = [], []
    for case in SUITE:
        if only and case.name not in only:
            continue
        try:
            new = run_case(case, seeds, is_quick=is_quick)
        except MissingExtraError as error:
            show(f"{case.name}: left out. {error}")
            continue
        rows += new
        tables.append(to_text(new))
        show(tables[-1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text("\n\n".join(tables) + "\n")
    (out / "values.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))
