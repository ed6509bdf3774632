"""The command: `python -m param_features.bench [--seeds N] [--quick] [--only NAME] [--out FILE]`."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from param_features.bench.suite import SUITE
from param_features.bench.table import run_case, to_text
from param_features.errors import MissingExtraError


def main(arguments: list[str] | None = None) -> None:
    """Run the suite, print the table as it grows, and save it with every seed's values."""
    parser = argparse.ArgumentParser(prog="python -m param_features.bench", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="runs of every toy (default 10)")
    parser.add_argument("--quick", action="store_true", help="smaller toys, for a first look")
    parser.add_argument("--only", choices=[case.name for case in SUITE], action="append", help="this toy; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for table.md and values.json")
    asked = parser.parse_args(arguments)
    if asked.seeds < 1:
        parser.error(f"--seeds {asked.seeds} must be at least 1")
    torch.set_num_threads(1)  # these tensors are too small for more, and CPU seconds compare
    rows, tables = [], []
    for case in SUITE:
        if asked.only and case.name not in asked.only:
            continue
        try:
            new = run_case(case, range(asked.seeds), is_quick=asked.quick)
        except MissingExtraError as error:
            print(f"{case.name}: left out. {error}", end="\n\n", flush=True)
            continue
        rows += new
        tables.append(to_text(new))
        print(tables[-1], end="\n\n", flush=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "table.md").write_text("\n\n".join(tables) + "\n")
    (asked.out / "values.json").write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
