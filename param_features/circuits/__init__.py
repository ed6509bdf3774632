"""Circuits: graphs of features that explain a metric, and what they are worth."""

from param_features.circuits.graph import Circuit, Edge, Node, NodeExample

__all__ = ["Circuit", "Edge", "Node", "NodeExample"]
