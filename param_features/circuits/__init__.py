"""Circuits: graphs of features that explain a metric, what they are worth, and how features act on each other."""

from param_features.circuits.effects import IndirectEffects, indirect_effects
from param_features.circuits.export_graph import Layout, layout
from param_features.circuits.find import circuit
from param_features.circuits.graph import Circuit, Edge, Node, NodeExample
from param_features.circuits.metric import (
    LogitDifference,
    LogProbability,
    Metric,
    NextTokenLoss,
    checked,
    next_token_losses,
    read_metric,
)
from param_features.circuits.pairs_of_features import Interactions, interactions
from param_features.circuits.passes import Subject
from param_features.circuits.query_keys import QueryKey, QueryKeyPair, query_key
from param_features.circuits.reading import weight_group
from param_features.circuits.shift import Shift
from param_features.circuits.tables import ranked, score_rows, spread
from param_features.params import Attention, Rotary

__all__ = [
    "Attention",
    "Circuit",
    "Edge",
    "IndirectEffects",
    "Interactions",
    "Layout",
    "LogProbability",
    "LogitDifference",
    "Metric",
    "NextTokenLoss",
    "Node",
    "NodeExample",
    "QueryKey",
    "QueryKeyPair",
    "Rotary",
    "Shift",
    "Subject",
    "checked",
    "circuit",
    "indirect_effects",
    "interactions",
    "layout",
    "next_token_losses",
    "query_key",
    "ranked",
    "read_metric",
    "score_rows",
    "spread",
    "weight_group",
]
