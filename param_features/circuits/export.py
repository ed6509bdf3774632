"""Circuits as JSON files: data only, written whole or not at all, checked on reading."""

import dataclasses
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from param_features.circuits.export_check import check, problems
from param_features.circuits.graph import CircuitGraph, Edge, Node, NodeExample
from param_features.files import MOST_BYTES, Format, Origin, new_file, read_file, write_whole

_HEAD = ("format", "format_version", "library_version")
FORMAT = Format("param_features circuit", "a circuit", (1,), "sha256", unsummed=_HEAD)
_NEXT_STEP = "Give a file that circuit.save wrote."


def save_graph(circuit: CircuitGraph, path: str | PathLike) -> Path:
    """Write a circuit under another name first, so that an interrupted write leaves what was there.

    Returns:
        The file's path.

    Raises:
        ExportError: The circuit does not hold together, or its record cannot be written as JSON.
    """
    check(circuit)
    body = {name: getattr(circuit, name) for name in _names_of(CircuitGraph)}
    body |= {"nodes": [dataclasses.asdict(node) for node in circuit.nodes], "record": dict(circuit.record)}
    body |= {"edges": [dataclasses.asdict(edge) for edge in circuit.edges], "scores": dict(circuit.scores)}
    return write_json(path, FORMAT.stamped(body))


def load_graph(path: str | PathLike) -> CircuitGraph:
    """Read a circuit and check every part of it. Tuples in its record come back as lists.

    Raises:
        StoreError: There is no such file, or it is no circuit, cut short, edited, of another version, or does not hold
            together; the message names the part.
    """
    origin = Origin(str(path), _NEXT_STEP)
    content = FORMAT.read(read_file(Path(path), origin, most=MOST_BYTES), origin)
    body = {key: value for key, value in content.items() if key not in _HEAD}
    try:
        parts = _circuit(body)
    except (TypeError, ValueError) as error:
        origin.refuse(f"is no circuit: {error}", error)
    problem = next(problems(parts), None)
    if problem is not None:
        origin.refuse(f"holds a circuit that does not hold together: {problem}")
    return _built(parts)


def write_json(path: str | PathLike, content: Mapping[str, Any]) -> Path:
    """Write JSON whole or not at all; missing folders are made."""
    path = new_file(path, "circuit.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode())
    return path


def _circuit(body: Mapping[str, Any]) -> SimpleNamespace:
    """Collect the circuit's fields as they were read: lists are tuples, and nothing else is known of them."""
    parts = _fields(CircuitGraph, body, "the circuit")
    nodes = [_node(node, f"node {number}") for number, node in enumerate(_list(parts, "nodes"))]
    edges = [_fields(Edge, edge, f"edge {number}") for number, edge in enumerate(_list(parts, "edges"))]
    parts["prompts"] = tuple(tuple(_checked(prompt, list, "a prompt")) for prompt in _list(parts, "prompts"))
    for name in ("record", "scores"):
        _checked(parts[name], dict, name)
    parts |= {"nodes": nodes, "edges": [SimpleNamespace(**edge) for edge in edges]}
    return SimpleNamespace(**parts)


def _node(body: Any, name: str) -> SimpleNamespace:
    parts = _fields(Node, body, name)
    examples = []
    for number, example in enumerate(_list(parts, "examples")):
        fields = _fields(NodeExample, example, f"example {number} of {name}")
        lists = {key: tuple(_list(fields, key)) for key in ("tokens", "strengths")}
        examples.append(SimpleNamespace(**fields | lists))
    parts |= {"effects": tuple(_list(parts, "effects")), "examples": tuple(examples)}
    return SimpleNamespace(**parts)


def _built(parts: SimpleNamespace) -> CircuitGraph:
    """Build the circuit of parts that have been checked."""
    nodes = []
    for node in parts.nodes:
        examples = tuple(NodeExample(**vars(example)) for example in node.examples)
        nodes.append(Node(**vars(node) | {"examples": examples}))
    return CircuitGraph(**vars(parts) | {"nodes": tuple(nodes), "edges": tuple(Edge(**vars(edge)) for edge in parts.edges)})


def _fields(kind: type, body: Any, name: str) -> dict[str, Any]:
    """Take the fields of one part, and refuse missing and unknown ones."""
    expected = set(_names_of(kind))
    names = set(_checked(body, dict, name))
    if names != expected:
        missing, unknown = sorted(expected - names), sorted(names - expected)
        raise ValueError(f"{name} lacks {missing or 'nothing'} and has the unknown {unknown or 'nothing'}")
    return dict(body)


def _names_of(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _list(parts: Mapping[str, Any], name: str) -> list:
    return _checked(parts[name], list, name)


def _checked(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a {type(value).__name__}, not a {kind.__name__}")
    return value
