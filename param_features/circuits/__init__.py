"""Circuits: graphs of features that explain a metric, and what they are worth."""

from param_features.attention import Attention, Rotary
from param_features.circuits.graph import Circuit, Edge, Node, NodeExample
from param_features.circuits.query_key import QueryKey, QueryKeyPair, query_key

__all__ = ["Attention", "Circuit", "Edge", "Node", "NodeExample", "QueryKey", "QueryKeyPair", "Rotary", "query_key"]
