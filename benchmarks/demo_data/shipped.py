"""Write the rows that the package ships: `python -m benchmarks.demo_data.shipped [--out FILE]`, 10 seconds on one core."""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.demo_data.rows import tell_rows
from param_features.demo.grammar import RULES
from param_features.demo.rows import ROWS_FILE, ShippedRows
from param_features.demo.vocabulary import read_vocabulary

N_ROWS = (4096, *[512] * 9)
"""Rows of the seeds 0 to 9: as many of seed 0 as the command line reads."""

WIDTH = 96
"""Tokens per row: every first story is whole."""


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROWS_FILE, help="the file to write")
    path = parser.parse_args().out
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **{name: table.numpy() for name, table in make_rows()._asdict().items()})
    print(f"{path}: {path.stat().st_size:,} bytes")


def make_rows(n_rows: tuple[int, ...] = N_ROWS, width: int = WIDTH) -> ShippedRows:
    """Tell the rows of each seed, and give each kind of place a number, in the order in which they first come up.

    Args:
        n_rows: Rows of the seeds 0, 1 and so on.
        width: Tokens per row.

    Returns:
        What `param_features.demo.rows.read_rows` reads.
    """
    rows = [row for seed, n in enumerate(n_rows) for row in tell_rows(n, width, seed=seed)]
    ids = read_vocabulary()
    numbers: dict[tuple[frozenset[str], float, float], int] = {}
    places = [zip(row.next_rules, row.next_surprisal, row.next_entropy, strict=True) for row in rows]
    kinds = [[numbers.setdefault(place, len(numbers)) for place in row] for row in places]
    return ShippedRows(
        n_rows=torch.tensor(n_rows),
        tokens=torch.tensor([[ids[token] for token in row.tokens] for row in rows], dtype=torch.uint8),
        kinds=torch.tensor(kinds, dtype=torch.uint8),
        rules=torch.tensor([[name in determining for name in RULES] for determining, _, _ in numbers]),
        surprisal=torch.tensor([value for _, value, _ in numbers], dtype=torch.float32),
        entropy=torch.tensor([value for _, _, value in numbers], dtype=torch.float32),
    )


if __name__ == "__main__":
    main()
