"""Parameter features: low-rank directions in a model's weights, each of which matters for few inputs."""

from param_features import adapters, circuits, demo, development, errors, sae, toys
from param_features import plots as plot
from param_features.audit import AuditSettings
from param_features.circuits import circuit
from param_features.errors import ParamFeaturesError
from param_features.features import ParamComponents, ParamFeatures, decompose, load, sweep, track
from param_features.files import library_version
from param_features.fit import FitSettings, HessianSettings
from param_features.fit.components import ComponentSettings
from param_features.fitted import Metrics
from param_features.gradients import HarvestSettings
from param_features.gradients.disk import FactorStore
from param_features.machine import alone
from param_features.measure import match
from param_features.params import list_params
from param_features.problem import Background, Pairs, stream_rows
from param_features.run import CheckpointSettings, SweepSettings, describe, estimate, harvest
from param_features.sae import compare
from param_features.sharing import CardSettings

__version__ = library_version()

__all__ = [
    "AuditSettings",
    "Background",
    "CardSettings",
    "CheckpointSettings",
    "ComponentSettings",
    "FactorStore",
    "FitSettings",
    "HarvestSettings",
    "HessianSettings",
    "Metrics",
    "Pairs",
    "ParamComponents",
    "ParamFeatures",
    "ParamFeaturesError",
    "SweepSettings",
    "adapters",
    "alone",
    "circuit",
    "circuits",
    "compare",
    "decompose",
    "demo",
    "describe",
    "development",
    "errors",
    "estimate",
    "harvest",
    "list_params",
    "load",
    "match",
    "plot",
    "sae",
    "stream_rows",
    "sweep",
    "toys",
    "track",
]
