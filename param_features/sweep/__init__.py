"""Fits over several settings from one store of gradients, and which of them to take."""

from param_features.sweep.recommend import Recommendation
from param_features.sweep.row import SweepRow
from param_features.sweep.run import sweep
from param_features.sweep.settings import SweepSettings
from param_features.sweep.table import Sweep

__all__ = ["Recommendation", "Sweep", "SweepRow", "SweepSettings", "sweep"]
