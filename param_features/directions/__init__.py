"""Low-rank directions in the space of a parameter subset."""

from param_features.directions.low_rank import LowRank, leading_factors

__all__ = ["LowRank", "leading_factors"]
