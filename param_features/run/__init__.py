"""From what the user asks to fitted features: decomposing, harvesting, estimating, sweeping, loading."""

from param_features.run.decomposition import decompose
from param_features.run.description import ModelDescription, describe
from param_features.run.estimation import Estimate, estimate
from param_features.run.harvesting import harvest
from param_features.run.loading import bind, load
from param_features.run.record import settings_of_record
from param_features.run.resuming import CheckpointSettings
from param_features.run.sweeping import ComponentSweep, Sweep, SweepRow, SweepSettings, sweep

__all__ = [
    "CheckpointSettings",
    "ComponentSweep",
    "Estimate",
    "ModelDescription",
    "Sweep",
    "SweepRow",
    "SweepSettings",
    "bind",
    "decompose",
    "describe",
    "estimate",
    "harvest",
    "load",
    "settings_of_record",
    "sweep",
]
