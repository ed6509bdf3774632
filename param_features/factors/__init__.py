"""Gradients on disk: harvested once, read by any number of decompositions."""

from param_features.factors.harvesting import harvest
from param_features.factors.opening import FactorStore

__all__ = ["FactorStore", "harvest"]
