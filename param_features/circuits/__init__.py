"""Circuits: graphs of features that explain a metric, what they are worth, and how features act on each other."""

from param_features.attention import Attention, Rotary
from param_features.circuits.effects import IndirectEffects, indirect_effects
from param_features.circuits.find import circuit
from param_features.circuits.graph import Circuit, Edge, Node, NodeExample
from param_features.circuits.interactions import Interactions, interactions
from param_features.circuits.metric import LogitDifference, LogProbability, Metric, NextTokenLoss
from param_features.circuits.query_key import QueryKey, QueryKeyPair, query_key
from param_features.circuits.shift import Shift

__all__ = [
    "Attention",
    "Circuit",
    "Edge",
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
    "circuit",
    "indirect_effects",
    "interactions",
    "query_key",
]
