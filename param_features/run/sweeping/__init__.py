"""Fits over several settings from one store of gradients, and which of them to take."""

from param_features.run.sweeping.components import ComponentRow, ComponentSweep
from param_features.run.sweeping.recommendation import Recommendation
from param_features.run.sweeping.row import SweepRow
from param_features.run.sweeping.settings import SweepSettings
from param_features.run.sweeping.sweeps import sweep
from param_features.run.sweeping.table import Sweep

__all__ = ["ComponentRow", "ComponentSweep", "Recommendation", "Sweep", "SweepRow", "SweepSettings", "sweep"]
