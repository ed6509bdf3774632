"""The command `python -m benchmarks.bench`."""

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bench.running import run_suite
from benchmarks.bench.suite import SUITE
from param_features.cli.options import FIT, OUTPUT, flag, option

_OUT = Path("runs/bench")
_ONLY = f"This toy; may be repeated. Toys: {', '.join(case.name for case in SUITE)}."


def bench(
    *,
    seeds: Annotated[int, option("--seeds", FIT, "Runs of every toy.", min=1, metavar="N")] = 10,
    quick: Annotated[bool, flag("--quick", FIT, "Smaller toys, for a first look.")] = False,
    only: Annotated[list[str] | None, option("--only", FIT, _ONLY, metavar="NAME")] = None,
    out: Annotated[Path, option("--out", OUTPUT, "Folder for table.md and values.json.", metavar="FOLDER")] = _OUT,
) -> None:
    """Train and decompose every toy with several seeds: medians and worst seeds beside controls and aims.

    Prints each toy's table when it is done, and saves them all with every seed's values.
    """
    run_suite(range(seeds), out=out, is_quick=quick, only=only, show=lambda table: typer.echo(f"{table}\n"))
