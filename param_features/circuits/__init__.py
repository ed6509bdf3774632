"""Circuits: graphs of features that explain a metric, what they are worth, and how features act on each other."""

from param_features.circuits.circuit_methods import Circuit
from param_features.circuits.effects import IndirectEffects, indirect_effects
from param_features.circuits.export_graph import GraphLayout, lay_out
from param_features.circuits.find import circuit
from param_features.circuits.graph import Edge, Node, NodeExample
from param_features.circuits.metric import (
    LogitDifference,
    LogProbability,
    Metric,
    NextTokenLoss,
    checked_values,
    next_token_losses,
    read_metric,
)
from param_features.circuits.pairs_of_features import Interactions, interactions
from param_features.circuits.passes import CircuitSubject
from param_features.circuits.query_keys import QueryKey, QueryKeyPair, query_key
from param_features.circuits.reading import weight_group
from param_features.circuits.shift import Shift
from param_features.circuits.tables import ranked, score_rows, spread
from param_features.circuits.verdict import circuit_verdict
from param_features.params import Attention, Rotary

__all__ = [
    "Attention",
    "Circuit",
    "CircuitSubject",
    "Edge",
    "GraphLayout",
    "IndirectEffects",
    "Interactions",
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
    "checked_values",
    "circuit",
    "circuit_verdict",
    "indirect_effects",
    "interactions",
    "lay_out",
    "next_token_losses",
    "query_key",
    "ranked",
    "read_metric",
    "score_rows",
    "spread",
    "weight_group",
]
