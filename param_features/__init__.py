"""Parameter features: low-rank directions in a model's weights, each of which matters for few inputs."""

from param_features import adapters, bench, circuits, demo, errors, plot, toys
from param_features.audit import Audit, AuditSettings
from param_features.background import Background
from param_features.changes import Coordinates
from param_features.circuits import (
    Circuit,
    IndirectEffects,
    Interactions,
    LogitDifference,
    LogProbability,
    QueryKey,
    circuit,
    indirect_effects,
    interactions,
    query_key,
)
from param_features.decompose import FitSettings, HessianSettings
from param_features.describe import describe
from param_features.development import (
    LearningCoefficient,
    LossTrajectory,
    PrefixMatching,
    ProgressLosses,
    Pushes,
    Track,
    dimensionality,
    gini,
    in_context_score,
    learning_coefficient,
    loss_trajectory,
    prefix_matching,
    progress_losses,
    pushes,
    ticket_masks,
    token_losses,
    track,
)
from param_features.errors import ParamFeaturesError
from param_features.estimate import Estimate, estimate
from param_features.factors import FactorStore, harvest
from param_features.features import ParamFeatures
from param_features.gradients import HarvestSettings
from param_features.loading import load
from param_features.measure import Match, MeasureSettings, Metrics
from param_features.pairing import match
from param_features.pairs import Pairs
from param_features.pipeline import decompose, list_params
from param_features.processes import alone
from param_features.sae import Comparison, compare, sae_metrics, train_sae
from param_features.sharing import CardSettings
from param_features.streaming import stream_rows
from param_features.sweep import Sweep, SweepRow, SweepSettings, sweep

__all__ = [
    "Audit",
    "AuditSettings",
    "Background",
    "CardSettings",
    "Circuit",
    "Comparison",
    "Coordinates",
    "Estimate",
    "FactorStore",
    "FitSettings",
    "HarvestSettings",
    "HessianSettings",
    "IndirectEffects",
    "Interactions",
    "LearningCoefficient",
    "LogProbability",
    "LogitDifference",
    "LossTrajectory",
    "Match",
    "MeasureSettings",
    "Metrics",
    "Pairs",
    "ParamFeatures",
    "ParamFeaturesError",
    "PrefixMatching",
    "ProgressLosses",
    "Pushes",
    "QueryKey",
    "Sweep",
    "SweepRow",
    "SweepSettings",
    "Track",
    "adapters",
    "alone",
    "bench",
    "circuit",
    "circuits",
    "compare",
    "decompose",
    "demo",
    "describe",
    "dimensionality",
    "errors",
    "estimate",
    "gini",
    "harvest",
    "in_context_score",
    "indirect_effects",
    "interactions",
    "learning_coefficient",
    "list_params",
    "load",
    "loss_trajectory",
    "match",
    "plot",
    "prefix_matching",
    "progress_losses",
    "pushes",
    "query_key",
    "sae_metrics",
    "stream_rows",
    "sweep",
    "ticket_masks",
    "token_losses",
    "toys",
    "track",
    "train_sae",
]
