"""The report's section about a circuit: a picture, scores beside controls, and its nodes with their texts."""

import re
from collections.abc import Mapping
from typing import Any

from param_features.circuits import Circuit, Node, NodeExample, circuit_verdict, lay_out, ranked, score_rows, spread
from param_features.report.samples import Vocabulary, digits, window

_SHOWN_EXAMPLES, _SHOWN_PROMPTS = 5, 20


def circuit_section(circuit: Circuit, vocabulary: Vocabulary, params: Mapping[str, Any], n_features: int) -> dict[str, Any]:
    """Everything that the page shows of a circuit, as plain numbers and strings.

    Args:
        circuit: The graph to show.
        vocabulary: The page's strings; the nodes' tokens are added to them.
        params: The report's parameters; a node whose group names the same is taken for a feature of the report.
        n_features: How many features the report has.

    Raises:
        ExportError: The circuit's parts do not fit together.
    """
    places = lay_out(circuit)
    numbers = {node.name: number for number, node in enumerate(circuit.nodes)}
    return {
        "metric": circuit.metric,
        "verdict": circuit_verdict(circuit),
        "facts": [[str(name), _fact(value)] for name, value in circuit.record.items()],
        "prompts": ["".join(prompt) for prompt in circuit.prompts[:_SHOWN_PROMPTS]],
        "n_prompts": len(circuit.prompts),
        "scores": [
            {"name": score.name, "value": digits(score.value)}
            | {"controls": {name: digits(value) for name, value in score.controls.items()}}
            for score in score_rows(circuit.scores)
        ],
        "columns": [list(groups) for groups in places.columns],
        "nodes": [
            _node(node, vocabulary) | {"place": list(places.places[node.name]), "link": _link(node, params, n_features)}
            for node in circuit.nodes
        ],
        "edges": [[numbers[edge.source], numbers[edge.target], digits(edge.weight)] for edge in circuit.edges],
        "ranked": [numbers[node.name] for node in ranked(circuit)],
    }


def _fact(value: Any) -> str:
    return str(digits(value)) if isinstance(value, float) else str(value)


def _node(node: Node, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "name": node.name,
        "short": node.name.removeprefix(f"{node.group}/"),
        "kind": node.kind,
        "label": node.label,
        "effect": digits(node.effect) if node.effects else None,
        "spread": digits(spread(node)),
        "examples": [_example(example, vocabulary) for example in node.examples[:_SHOWN_EXAMPLES]],
    }


def _link(node: Node, params: Mapping[str, Any], n_features: int) -> int | None:
    """The number of the report's feature that a node stands for, of the same parameters; None for other nodes."""
    if node.kind != "parameter" or node.feature is None or node.feature >= n_features:
        return None
    names = set(re.split(r"[\s,+]+", node.group.strip()))
    return node.feature if names == set(params) else None


def _example(example: NodeExample, vocabulary: Vocabulary) -> dict[str, Any]:
    shown = window(example.position)
    return {
        "at": example.position - shown.start,
        "act": digits(example.strengths[example.position]),
        "tokens": [vocabulary.number(token) for token in example.tokens[shown]],
        "acts": [digits(value) for value in example.strengths[shown]],
    }
