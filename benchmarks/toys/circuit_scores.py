"""How well a circuit of fitted features agrees with a planted one, beside random circuits of the same size."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from param_features.circuits import Circuit
from param_features.errors import SettingError
from param_features.fit.formats import LowRank
from param_features.measure.agreement import cosines

Node = tuple[str, int]
"""(layer, feature)."""
Edge = tuple[Node, Node]
"""(source, target)."""
Nodes = frozenset[Node]
Edges = frozenset[Edge]

ALIKE = 0.8
"""|cosine| from which a fitted feature is taken for the planted one that it is nearest to."""
_DRAWS = 100


@dataclass(frozen=True)
class CircuitScores:
    """Precision and recall of a circuit's nodes and edges, each 0 to 1; an empty set has precision 0.

    A fitted feature is taken for the planted one that it is nearest to, where |cosine| is at least 0.8; one that is near
    none is false. Several fitted features of one planted one each count as right, and once for the recall.

    Attributes:
        node_precision: Share of the nodes that are in the planted circuit.
        node_recall: Share of the planted circuit's nodes that were found.
        edge_precision: Share of the edges that are in the planted circuit.
        edge_recall: Share of the planted circuit's edges that were found.
        random: The same numbers of circuits of as many nodes in each layer, drawn from the fitted features, with as many
            edges between them: means over 100 draws.
        random_best: The highest of each over these draws.
        rewired: The edges' numbers with the circuit's own nodes and as many edges drawn between these: means over 100 draws.
    """

    node_precision: float
    node_recall: float
    edge_precision: float
    edge_recall: float
    random: Mapping[str, float]
    random_best: Mapping[str, float]
    rewired: Mapping[str, float]

    @property
    def numbers(self) -> dict[str, float]:
        """Every number by name, controls among them, flat, for tables."""
        own = {name: getattr(self, name) for name in self.random}
        controls = {"random": self.random, "random_best": self.random_best, "rewired": self.rewired}
        return own | {f"{name}_{control}": value for control, row in controls.items() for name, value in row.items()}

    def __repr__(self) -> str:
        """One number a line, its controls beside it."""
        lines = []
        for name in self.random:
            beside = f"random circuits {self.random[name]:.3f}, best of {_DRAWS} {self.random_best[name]:.3f}"
            rewired = f", rewired {self.rewired[name]:.3f}" if name in self.rewired else ""
            lines.append(f"{name:<14} {getattr(self, name):.3f}  ({beside}{rewired})")
        return "\n".join(lines)


def read_circuit(circuit: Circuit) -> tuple[Nodes, Edges]:
    """Nodes of parameter features as (group, feature), and the edges between them; other kinds are left out."""
    features = ((node.name, node.group, node.feature) for node in circuit.nodes if node.kind == "parameter")
    known = {name: (group, feature) for name, group, feature in features if feature is not None}
    pairs = ((known.get(edge.source), known.get(edge.target)) for edge in circuit.edges)
    return frozenset(known.values()), frozenset((one, two) for one, two in pairs if one is not None and two is not None)


def matched(planted: Mapping[str, LowRank], found: Mapping[str, LowRank]) -> dict[Node, Node | None]:
    """For every fitted feature the planted one that it is taken for, or None.

    Raises:
        SettingError: A layer has no planted features.
    """
    nodes: dict[Node, Node | None] = {}
    for layer, directions in found.items():
        if layer not in planted:
            raise SettingError(f"There is no layer {layer!r}. Layers: {', '.join(map(repr, planted))}.")
        cosine, nearest = cosines(directions, planted[layer]).abs().max(1)
        for feature, (value, partner) in enumerate(zip(cosine.tolist(), nearest.tolist(), strict=True)):
            nodes[layer, feature] = (layer, partner) if value >= ALIKE else None
    return nodes


def score_circuit(
    circuit: tuple[Iterable[Node], Iterable[Edge]],
    truth: tuple[Nodes, Edges],
    *,
    planted: Mapping[str, LowRank],
    found: Mapping[str, LowRank],
    seed: int = 0,
) -> CircuitScores:
    """Score a circuit of fitted features against a planted one.

    Args:
        circuit: Nodes and edges, in fitted features.
        truth: Nodes and edges, in planted features.
        planted: The planted directions of each layer.
        found: The fitted directions of each layer.
        seed: Of the random circuits.

    Raises:
        SettingError: A node or the end of an edge is no fitted feature.
    """
    partners = matched(planted, found)
    nodes, edges = sorted(frozenset(circuit[0])), sorted(frozenset(circuit[1]))
    _check(nodes, edges, partners)
    generator = torch.Generator().manual_seed(seed)
    rows, rewired = [], []
    for _ in range(_DRAWS):
        drawn = _random_nodes(nodes, partners, generator)
        rows.append(_agreement(drawn, _random_edges(drawn, len(edges), list(planted), generator), truth, partners))
        rewired.append(_agreement(nodes, _random_edges(nodes, len(edges), list(planted), generator), truth, partners))
    return CircuitScores(
        **_agreement(nodes, edges, truth, partners),
        random={name: sum(row[name] for row in rows) / _DRAWS for name in rows[0]},
        random_best={name: max(row[name] for row in rows) for name in rows[0]},
        rewired={name: sum(row[name] for row in rewired) / _DRAWS for name in rows[0] if name.startswith("edge")},
    )


def _check(nodes: list[Node], edges: list[Edge], known: Mapping[Node, Node | None]) -> None:
    for node in [*nodes, *(end for edge in edges for end in edge)]:
        if node not in known:
            sizes = Counter(layer for layer, _ in known)
            raise SettingError(
                f"{node!r} is no fitted feature. Nodes are (layer, feature), of "
                + ", ".join(f"{layer!r} with 0 to {size - 1}" for layer, size in sizes.items())
                + "."
            )


def _agreement(
    nodes: list[Node], edges: list[Edge], truth: tuple[Nodes, Edges], partners: Mapping[Node, Node | None]
) -> dict[str, float]:
    node_precision, node_recall = _shares([partners[node] for node in nodes], truth[0])
    edge_precision, edge_recall = _shares([(partners[source], partners[target]) for source, target in edges], truth[1])
    return {
        "node_precision": node_precision,
        "node_recall": node_recall,
        "edge_precision": edge_precision,
        "edge_recall": edge_recall,
    }


def _shares(found: list, true: frozenset) -> tuple[float, float]:
    """Precision and recall of what fitted nodes or edges stand for."""
    right = [one for one in found if one in true]
    return len(right) / len(found) if found else 0.0, len(set(right)) / len(true)


def _random_nodes(nodes: list[Node], known: Mapping[Node, Node | None], generator: torch.Generator) -> list[Node]:
    """As many fitted features of each layer as there are among `nodes`."""
    drawn = []
    for layer, n in Counter(layer for layer, _ in nodes).items():
        rows = [node for node in known if node[0] == layer]
        drawn += [rows[k] for k in torch.randperm(len(rows), generator=generator)[:n].tolist()]
    return drawn


def _random_edges(nodes: list[Node], n: int, layers: list[str], generator: torch.Generator) -> list[Edge]:
    """Pairs of given nodes, of an earlier and a later layer: `n` of them, or all where there are fewer."""
    depth = {layer: place for place, layer in enumerate(layers)}
    pairs = [(one, two) for one in nodes for two in nodes if depth[one[0]] < depth[two[0]]]
    return [pairs[k] for k in torch.randperm(len(pairs), generator=generator)[:n].tolist()]
