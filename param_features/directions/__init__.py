"""Low-rank directions in the space of a parameter subset: the matrix, CP and Tucker formats."""

from param_features.directions.cp import CP
from param_features.directions.low_rank import Directions, LowRank, leading_factors
from param_features.directions.tucker import Tucker

FORMATS: dict[str, type[Directions]] = {"matrix": LowRank, "cp": CP, "tucker": Tucker}
"""Formats by the name that `pf.decompose` takes."""

__all__ = ["CP", "FORMATS", "Directions", "LowRank", "Tucker", "leading_factors"]
