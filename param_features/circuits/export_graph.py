"""Circuits as networkx graphs, and the places of their nodes in a picture."""

import importlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from param_features.circuits.export_check import check
from param_features.circuits.graph import CircuitGraph, Node
from param_features.errors import MissingExtraError

if TYPE_CHECKING:
    import networkx as nx

_SWEEPS = 4


def networkx() -> Any:
    """Import networkx.

    Raises:
        MissingExtraError: networkx is not installed.
    """
    try:
        return importlib.import_module("networkx")
    except ImportError as error:
        raise MissingExtraError(
            'Graphs need networkx, which cannot be imported. pip install "param_features[plots]" brings it.'
        ) from error


def to_networkx(circuit: CircuitGraph) -> "nx.DiGraph":
    """Make a networkx graph with every field of the nodes and edges as attributes; each node also has its mean `effect`.

    Raises:
        ExportError: The circuit does not hold together.
    """
    check(circuit)
    graph = networkx().DiGraph(
        metric=circuit.metric, prompts=circuit.prompts, record=dict(circuit.record), scores=dict(circuit.scores)
    )
    attributes = [field.name for field in fields(Node) if field.name != "name"]
    for node in circuit.nodes:
        graph.add_node(node.name, **{name: getattr(node, name) for name in attributes}, effect=node.effect)
    for edge in circuit.edges:
        graph.add_edge(edge.source, edge.target, weight=edge.weight)
    return graph


@dataclass(frozen=True)
class GraphLayout:
    """Where the nodes of a circuit stand in a picture.

    Attributes:
        places: Column and row by name. Columns count from 0; rows are one apart, centred on 0, the highest on top.
        columns: The groups of each column.
    """

    places: Mapping[str, tuple[float, float]]
    columns: tuple[tuple[str, ...], ...]

    @property
    def n_rows(self) -> int:
        """The number of nodes in the fullest column."""
        counts = defaultdict(int)
        for column, _ in self.places.values():
            counts[column] += 1
        return max(counts.values(), default=0)


def lay_out(circuit: CircuitGraph) -> GraphLayout:
    """Place nodes in columns by depth; within a column by group, errors last, and near what the nodes are joined with.

    Cost: a few passes over the edges.

    Raises:
        ExportError: The circuit does not hold together.

    Source: Sugiyama et al. 1981, ordering by barycentre; networkx' `multipartite_layout` for the places.
    """
    graph = to_networkx(circuit)
    depths = sorted({node.depth for node in circuit.nodes})
    columns = [[node for node in circuit.nodes if node.depth == depth] for depth in depths]
    if not columns:
        return GraphLayout({}, ())
    names = dict(enumerate(_untangled(columns, graph)))
    positions = networkx().multipartite_layout(graph, subset_key=names)
    first, last = positions[names[0][0]], positions[names[len(names) - 1][-1]]
    has_columns = len(names) > 1
    span = float(last[0] - first[0] if has_columns else last[1] - first[1])
    unit = span / max(1, len(names) - 1 if has_columns else len(names[0]) - 1) or 1.0  # networkx scales it to a box
    places = {
        name: (round(float(x - first[0]) / unit), -round(2 * float(y) / unit) / 2) for name, (x, y) in positions.items()
    }
    return GraphLayout(places, tuple(tuple(dict.fromkeys(node.group for node in column)) for column in columns))


def _untangled(columns: list[list[Node]], graph: "nx.DiGraph") -> list[list[str]]:
    """Order the names of each column's nodes, first by size of effect, then moved towards their neighbours."""
    block = {}
    for column in columns:
        groups = list(dict.fromkeys(node.group for node in column))
        block |= {node.name: (groups.index(node.group), node.kind == "error") for node in column}
    orders = [[node.name for node in sorted(column, key=lambda node: -abs(node.effect))] for column in columns]
    rows = {name: row for order in orders for name, row in _centred(order).items()}
    for sweep in range(_SWEEPS):
        for place in range(len(orders)) if sweep % 2 == 0 else reversed(range(len(orders))):
            pull = {name: _barycentre(graph, name, rows) for name in orders[place]}
            orders[place] = sorted(orders[place], key=lambda name, pull=pull: (*block[name], pull[name]))
            rows |= _centred(orders[place])
    return orders


def _centred(order: list[str]) -> dict[str, float]:
    return {name: row - (len(order) - 1) / 2 for row, name in enumerate(order)}


def _barycentre(graph: "nx.DiGraph", name: str, rows: Mapping[str, float]) -> float:
    """Average the rows of a node's neighbours, weighted by |weight|; the node's row where it has none."""
    neighbours = [(neighbour, data["weight"]) for _, neighbour, data in graph.out_edges(name, data=True)]
    neighbours += [(neighbour, data["weight"]) for neighbour, _, data in graph.in_edges(name, data=True)]
    total = sum(abs(weight) for _, weight in neighbours)
    return sum(rows[neighbour] * abs(weight) for neighbour, weight in neighbours) / total if total else rows[name]
