"""What every circuit must hold before it is written, drawn, or taken from a file."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from param_features.circuits.graph import CircuitGraph, Kind
from param_features.errors import ExportError, nearest
from param_features.files import is_count, is_number, shown

KINDS: tuple[str, ...] = get_args(Kind)


def check(circuit: CircuitGraph) -> None:
    """Refuse a circuit whose parts do not fit together.

    Raises:
        ExportError: The first thing that does not fit, by name.
    """
    for problem in problems(circuit):
        raise ExportError(f"This circuit does not hold together: {problem}. Mend it with dataclasses.replace.")


def problems(circuit: Any) -> Iterator[str]:
    """List everything that does not fit, each in words; nothing where all does.

    Args:
        circuit: A circuit, or whatever has its fields and came from a file: nothing is taken for granted.
    """
    if not isinstance(circuit.metric, str):
        yield f"its metric is {shown(circuit.metric)}, which is no text"
    for number, prompt in enumerate(circuit.prompts):
        if not all(isinstance(token, str) for token in prompt):
            yield f"prompt {number} holds tokens that are no text"
    yield from _score_problems(circuit)
    if wrong := _not_json(dict(circuit.record)):
        yield f"its record holds {wrong}, which JSON cannot express"
    for name, n in Counter(str(node.name) for node in circuit.nodes).items():
        if n > 1:
            yield f"{n} nodes are called {shown(name)}"
    for node in circuit.nodes:
        yield from (f"node {shown(node.name)} {problem}" for problem in _node_problems(node, len(circuit.prompts)))
    yield from _edge_problems(circuit)


def _score_problems(circuit: Any) -> Iterator[str]:
    for name, value in circuit.scores.items():
        if not isinstance(name, str):
            yield f"a score is called {shown(name)}, which is no text"
        if not is_number(value):
            yield f"score {shown(name)} is {shown(value)}, not a finite number"


def _node_problems(node: Any, n_prompts: int) -> Iterator[str]:
    if not isinstance(node.name, str) or not node.name:
        yield "has no name"
    if not isinstance(node.group, str) or not isinstance(node.label, str):
        yield "has a group or a label that is no text"
    if node.kind not in KINDS:
        yield f"is of kind {shown(node.kind)}; accepted: {', '.join(KINDS)}"
    if not is_count(node.depth):
        yield f"has depth {shown(node.depth)}, not a whole number from 0"
    if node.feature is not None and not is_count(node.feature):
        yield f"has feature {shown(node.feature)}, neither a whole number from 0 nor None"
    if len(node.effects) not in (0, n_prompts):
        yield f"has {len(node.effects)} effects, but there are {n_prompts} prompts"
    if not all(map(is_number, node.effects)):
        yield "has an effect that is not a finite number"
    for number, example in enumerate(node.examples):
        yield from (f"has an example, number {number}, with {problem}" for problem in _example_problems(example))


def _example_problems(example: Any) -> Iterator[str]:
    if not all(isinstance(token, str) for token in example.tokens):
        yield "tokens that are no text"
    if len(example.strengths) != len(example.tokens):
        yield f"{len(example.tokens)} tokens and {len(example.strengths)} strengths"
    if not all(map(is_number, example.strengths)):
        yield "a strength that is not a finite number"
    if not is_count(example.position) or example.position >= len(example.tokens):
        yield f"position {shown(example.position)} among {len(example.tokens)} tokens"


def _edge_problems(circuit: Any) -> Iterator[str]:
    depths = {node.name: node.depth for node in circuit.nodes if isinstance(node.name, str)}
    for (source, target), n in Counter((str(edge.source), str(edge.target)) for edge in circuit.edges).items():
        if n > 1:
            yield f"{n} edges lead from {shown(source)} to {shown(target)}"
    for edge in circuit.edges:
        yield from (f"the edge from {shown(edge.source)} to {shown(edge.target)} {it}" for it in _ends(edge, depths))


def _ends(edge: Any, depths: dict[str, int]) -> Iterator[str]:
    unknown = [end for end in (edge.source, edge.target) if not isinstance(end, str) or end not in depths]
    for end in unknown:
        yield f"ends at {shown(end)}, which is no node; nearest: {nearest(str(end), depths)}"
    if not unknown and (edge.source == edge.target or depths[edge.source] > depths[edge.target]):
        yield "does not lead forward"
    if not is_number(edge.weight):
        yield f"has weight {shown(edge.weight)}, not a finite number"


def _not_json(value: Any, name: str = "") -> str:
    """Name the entry of a record that cannot be written as JSON; empty where all can."""
    if isinstance(value, dict):
        wrong = (_not_json(entry, f"{name}[{key!r}]") if isinstance(key, str) else repr(key) for key, entry in value.items())
        return next(filter(None, wrong), "")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return f"{name} = {shown(value)}"
    return ""
