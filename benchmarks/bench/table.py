"""Run a case with several seeds and put the medians and the worst seeds in a table."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.bench.suite import Case

_LOW_IS_GOOD = (
    "loss", "KL", "faithfulness", "error", "dead", "seconds", "shuffled", "random", "sampled", "principal", "norm", "chance"
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One number of one case over the seeds.

    Attributes:
        case: The case's name.
        number: The number's name.
        values: One for each seed, in the seeds' order.
        aim: What every seed should reach, as text; empty where nothing is asked.
        n_met: Seeds that reach the aim; None where nothing is asked.
    """

    case: str
    number: str
    values: tuple[float, ...]
    aim: str = ""
    n_met: int | None = None

    @property
    def median(self) -> float:
        """Over the seeds."""
        return median(self.values)

    @property
    def worst(self) -> float:
        """The largest of errors, dead features, CPU seconds and controls; the smallest of everything else."""
        is_low_good = any(word in self.number for word in _LOW_IS_GOOD)
        return max(self.values) if is_low_good else min(self.values)


def run_case(case: Case, seeds: Sequence[int], *, is_quick: bool = False) -> list[Row]:
    """Train, decompose and score a case with each seed, which draws the toy and the fit alike.

    Cost: that of the toys; see each one's docstring.

    Args:
        case: What to run.
        seeds: One run each.
        is_quick: Whether to take the case's smaller setting.

    Returns:
        A row for each number that the toy's score holds, and the CPU seconds of training and of the decomposition.
    """
    runs = [_run(case, seed, is_quick) for seed in seeds]
    return [_row(case, number, tuple(run[number] for run in runs)) for number in runs[0]]


def _run(case: Case, seed: int, is_quick: bool) -> dict[str, float]:
    start = time.process_time()
    toy = case.toy(seed=seed, **(case.quick if is_quick else {}))
    trained = time.process_time()
    features = toy.decompose(seed=seed, **case.changes, **(case.quick_changes if is_quick else {}))
    fitted = time.process_time()
    return {**toy.score(features, seed=seed).numbers, "training seconds": trained - start, "seconds": fitted - trained}


def _row(case: Case, number: str, values: tuple[float, ...]) -> Row:
    if number in case.at_least:
        bound = case.at_least[number]
        return Row(case.name, number, values, f">= {bound:g}", sum(value >= bound for value in values))
    if number in case.at_most:
        bound = case.at_most[number]
        return Row(case.name, number, values, f"<= {bound:g}", sum(value <= bound for value in values))
    return Row(case.name, number, values)


def to_text(rows: Sequence[Row]) -> str:
    """The table, aligned for a terminal; valid Markdown too."""
    case, number = max(len(row.case) for row in rows), max(len(row.number) for row in rows)
    lines = [
        f"| {'':<{case}} | {'number':<{number}} |   median |    worst | aim      | met by |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        met = "" if row.n_met is None else f"{row.n_met} of {len(row.values)}"
        values = f"{row.median:>8.3f} | {row.worst:>8.3f}"
        lines.append(f"| {row.case:<{case}} | {row.number:<{number}} | {values} | {row.aim:<8} | {met} |")
    return "\n".join(lines)
