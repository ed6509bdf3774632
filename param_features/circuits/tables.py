"""A circuit in words: a summary, its scores beside their controls, and a row for each node."""

import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from param_features.circuits.graph import CircuitGraph, Node
from param_features.circuits.verdict import circuit_verdict
from param_features.measure import visible

_BEFORE, _AFTER = 6, 3
KINDS = {"parameter": "parameter", "sae": "SAE", "error": "error", "output": "output"}
_TOP = 8
_WIDTH = 100


@dataclass(frozen=True)
class Score:
    """One score beside its controls.

    Attributes:
        name: Such as `"faithfulness"`.
        value: Of the circuit.
        controls: The same of what must not do as well, by name: `"faithfulness_random"` is control `"random"`.
    """

    name: str
    value: float
    controls: Mapping[str, float]


_CONTROLS = ("random", "random_best", "matched", "matched_best", "directions")


def score_rows(scores: Mapping[str, float]) -> tuple[Score, ...]:
    """Group scores with their controls, which are named by another's name, `_`, and the name of a control."""
    owners = {
        name: next((base for base in scores for control in _CONTROLS if name == f"{base}_{control}"), "") for name in scores
    }
    return tuple(Score(base, scores[base], _controls(base, owners, scores)) for base in scores if not owners[base])


def _controls(base: str, owners: Mapping[str, str], scores: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(f"{base}_"): scores[name] for name in scores if owners[name] == base}


def ranked(circuit: CircuitGraph) -> list[Node]:
    """Sort the nodes by size of effect, the output left out."""
    nodes = [node for node in circuit.nodes if node.kind != "output"]
    return sorted(nodes, key=lambda node: -abs(node.effect))


def circuit_summary(circuit: CircuitGraph) -> str:
    """Write what a circuit prints: the metric, counts, scores, groups, and its strongest nodes."""
    counts = Counter(node.kind for node in circuit.nodes)
    kinds = ", ".join(f"{counts[kind]} {word}" for kind, word in KINDS.items() if counts[kind])
    lines = [
        f"Circuit of {visible(circuit.metric)} on {len(circuit.prompts)} prompts",
        f"{len(circuit.nodes)} nodes ({kinds}), {len(circuit.edges)} edges",
    ]
    lines += textwrap.wrap(circuit_verdict(circuit), _WIDTH)
    lines += [score_line(score) for score in score_rows(circuit.scores)]
    groups = Counter(node.group for node in circuit.nodes if node.kind != "output")
    lines += ["groups  " + ", ".join(f"{visible(group)} {n}" for group, n in groups.items())] if groups else []
    best = ranked(circuit)
    if best:
        lines += [f"strongest {min(_TOP, len(best))} nodes; circuit.table() has all", *_rows(best[:_TOP])]
    return "\n".join(lines)


def score_line(score: Score) -> str:
    """Write a score beside its controls, in one line."""
    controls = ", ".join(f"{visible(name)} {value:.3g}" for name, value in score.controls.items())
    return f"{visible(score.name):<22}{score.value:>9.3g}" + (f"  beside {controls}" if controls else "")


def node_table(circuit: CircuitGraph, n: int | None = None) -> str:
    """Write a row for each node, strongest first: name, kind, effect, its spread over prompts, label, first example."""
    return "\n".join(_rows(ranked(circuit)[:n]))


def _rows(nodes: list[Node]) -> list[str]:
    cells = [_cells(node) for node in nodes]
    head = ("node", "kind", "effect", "±", "label", "example")
    widths = [max(len(row[place]) for row in (head, *cells)) for place in range(len(head))]
    right = {2, 3}
    return ["  ".join(_padded(cell, widths[i], i in right) for i, cell in enumerate(row)).rstrip() for row in (head, *cells)]


def _cells(node: Node) -> tuple[str, ...]:
    effects = f"{node.effect:+.4g}", f"{spread(node):.2g}"
    return visible(node.name), KINDS.get(node.kind, node.kind), *effects, visible(node.label), _example(node)


def _padded(cell: str, width: int, is_right: bool) -> str:
    return cell.rjust(width) if is_right else cell.ljust(width)


def spread(node: Node) -> float:
    """Compute the standard deviation of a node's effect over prompts, in the metric's units."""
    if not node.effects:
        return 0.0
    return math.hypot(*(effect - node.effect for effect in node.effects)) / math.sqrt(len(node.effects))


def _example(node: Node) -> str:
    if not node.examples:
        return ""
    tokens, at = node.examples[0].tokens, node.examples[0].position
    before, after = "".join(tokens[max(0, at - _BEFORE) : at]), "".join(tokens[at + 1 : at + 1 + _AFTER])
    return visible(f"{before}«{tokens[at]}»{after}")
