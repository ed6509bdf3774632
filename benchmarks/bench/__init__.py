"""`python -m benchmarks.bench`: every toy with several seeds, medians and worst seeds beside controls in one table."""

from param_features.bench.running import run_suite
from param_features.bench.stability import stability
from param_features.bench.suite import SUITE, Case
from param_features.bench.table import Row, run_case, to_text

__all__ = ["SUITE", "Case", "Row", "run_case", "run_suite", "stability", "to_text"]
