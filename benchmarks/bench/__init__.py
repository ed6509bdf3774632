"""`python -m benchmarks.bench`: every toy with several seeds, medians and worst seeds beside controls in one table."""

from benchmarks.bench.running import run_suite
from benchmarks.bench.stability import stability
from benchmarks.bench.suite import SUITE, Case
from benchmarks.bench.table import Row, run_case, to_text

__all__ = ["SUITE", "Case", "Row", "run_case", "run_suite", "stability", "to_text"]
