"""Low-rank directions in the space of a parameter subset: the matrix, CP and Tucker formats."""

from param_features.fit.formats.cp import CP
from param_features.fit.formats.low_rank import (
    Directions,
    LowRank,
    direction_bytes,
    leading_factors,
    n_numbers,
    number_bytes,
)
from param_features.fit.formats.tucker import Tucker

FORMATS: dict[str, type[Directions]] = {"matrix": LowRank, "cp": CP, "tucker": Tucker}
"""Formats by the name that `pf.FitSettings(format=…)` takes."""

__all__ = [
    "CP",
    "FORMATS",
    "Directions",
    "LowRank",
    "Tucker",
    "direction_bytes",
    "leading_factors",
    "n_numbers",
    "number_bytes",
]
