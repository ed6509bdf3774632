"""Circuits as attribution graphs in the schema of Neuronpedia and circuit-tracer."""

import re
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from param_features.circuits.export import write_json
from param_features.circuits.export_check import check
from param_features.circuits.graph import CircuitGraph, Node
from param_features.circuits.tables import ranked
from param_features.errors import ExportError, SettingError
from param_features.files import library_version

SCHEMA_VERSION = 1
"""Features are numbered by pairs of layer and number."""
_TYPES = {"parameter": "parameter feature", "sae": "sae feature", "error": "mlp reconstruction error", "output": "logit"}
_MOST_PINNED = 100
_LAYER = re.compile(r"(?<![^.:/\s])\d+(?![^.:/\s])")


def save_neuronpedia(circuit: CircuitGraph, path: str | PathLike, *, slug: str, scan: str, prompt: int = 0) -> Path:
    """Write a circuit as an attribution graph; see `Circuit.to_neuronpedia`.

    Raises:
        SettingError: `slug` or `scan` hold what the site refuses, or there is no such prompt.
        ExportError: The circuit's parts do not fit together, or it has no node but the output.
    """
    return write_json(path, neuronpedia_graph(circuit, slug=slug, scan=scan, prompt=prompt))


def neuronpedia_graph(circuit: CircuitGraph, *, slug: str, scan: str, prompt: int = 0) -> dict[str, Any]:
    """Make the attribution graph as plain values.

    Raises:
        SettingError: `slug` or `scan` hold what the site refuses, or there is no such prompt.
        ExportError: The circuit's parts do not fit together, or it has no node but the output.

    Source: hijohnnylin/neuronpedia, apps/webapp/app/api/graph/graph-schema.json, version 1.0.0; circuit-tracer 0.5,
        frontend/graph_models.py. What the readers' code asks for beyond these is said where it is met.
    """
    check(circuit)
    for name, value in (("slug", slug), ("scan", scan)):
        if not re.fullmatch(r"[a-zA-Z0-9_.-]+", value):
            raise SettingError(f"{name}={value!r}. The site takes letters, digits, '_', '.' and '-'. Choose another.")
    if not 0 <= prompt < len(circuit.prompts) or not circuit.prompts[prompt]:
        raise SettingError(
            f"prompt={prompt}: there are {len(circuit.prompts)} prompts, of which it must be one with tokens."
        )
    if not any(node.kind != "output" for node in circuit.nodes):
        raise ExportError("This circuit has no node but the output, and the site refuses such graphs. Keep more nodes.")
    layers, tokens = _layers(circuit.nodes), _tokens(circuit.prompts[prompt])
    influences = _influences(circuit)
    nodes = {
        node.name: _node(node, number, layers[node.name], len(tokens) - 1)
        | {"clerp": _text(node, circuit.metric), "influence": influences.get(node.name)}
        for number, node in enumerate(circuit.nodes)
    }
    ids = {name: entry["node_id"] for name, entry in nodes.items()}
    pinned = [ids[node.name] for node in [*ranked(circuit)[:_MOST_PINNED], *_outputs(circuit)]]
    links = [{"source": ids[edge.source], "target": ids[edge.target], "weight": edge.weight} for edge in circuit.edges]
    return {
        "metadata": _metadata(circuit, tokens, slug, scan) | {"transcoder_list": _by_layer(circuit, layers)},
        "qParams": {"pinnedIds": pinned, "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": links,
    }


def _metadata(circuit: CircuitGraph, tokens: Sequence[str], slug: str, scan: str) -> dict[str, Any]:
    about = f"{circuit.metric}: {len(circuit.nodes)} nodes; effects are means over {len(circuit.prompts)} prompts"
    return {
        "slug": slug,
        "scan": scan,
        "prompt_tokens": list(tokens),
        "prompt": "".join(tokens),
        "node_threshold": 1.0,  # the site hides nothing at first, and its slider hides weak nodes
        "schema_version": SCHEMA_VERSION,
        "info": {"description": about, "generator": {"name": "param_features", "version": library_version()}},
        "generation_settings": dict(circuit.record),
    }


def _tokens(prompt: Sequence[str]) -> Sequence[str]:
    """Put an empty token before a prompt of one: readers delete nodes that occur on more than 2/3 of the tokens."""
    return ["", *prompt] if len(prompt) == 1 else prompt


def _by_layer(circuit: CircuitGraph, layers: Mapping[str, int]) -> list[str]:
    """Name the groups of every layer up to the output's: circuit-tracer looks one up where scan begins with `custom-`."""
    groups: list[dict[str, None]] = [{} for _ in range(max(layers.values()) + 1)]
    for node in circuit.nodes:
        groups[layers[node.name]][node.group] = None
    return [", ".join(of_layer) for of_layer in groups]


def _node(node: Node, number: int, layer: int, position: int) -> dict[str, Any]:
    """Make a node's entry. Its number is its place in the circuit: two groups of one layer may both have a feature 3."""
    is_output = node.kind == "output"
    return {
        "node_id": f"{layer}_{number}_{position}",
        "feature": (layer + number) * (layer + number + 1) // 2 + number,  # Cantor's pairing
        "layer": str(layer),
        "ctx_idx": position,
        "feature_type": _TYPES[node.kind],
        "token_prob": 1.0 if is_output else 0.0,
        "is_target_logit": is_output,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "jsNodeId": f"{'L' if is_output else layer}_{number}-0",
        "activation": None,
        "name": node.name,
        "group": node.group,
        "effect": node.effect,
    }


def _text(node: Node, metric: str) -> str:
    """Write a node's text: the site reads an output's token between quotes, and its probability after `(p=`, or fails."""
    if node.kind == "output":
        return f'Output "{metric.replace(chr(34), chr(39)).replace("(p=", "(p =")}" (p=1.000)'
    return f"{node.name}: {node.label}" if node.label else node.name


def _outputs(circuit: CircuitGraph) -> list[Node]:
    return [node for node in circuit.nodes if node.kind == "output"]


def _layers(nodes: Sequence[Node]) -> Mapping[str, int]:
    """Find nodes' layers by the number in the groups' names, or else depths; the output one above.

    The site draws as many rows as the model has layers, and takes a largest layer of 0 for none: then all move up by one.
    """
    matches = {node.group: _LAYER.search(node.group) for node in nodes if node.kind != "output"}
    named = {group: int(match[0]) for group, match in matches.items() if match}
    inner = [node for node in nodes if node.kind != "output"]
    layers = {node.name: named[node.group] if len(named) == len(matches) else node.depth for node in inner}
    shift = 0 if max(layers.values()) else 1
    top = max(layers.values()) + shift + 1
    return {node.name: layers[node.name] + shift if node.name in layers else top for node in nodes}


def _influences(circuit: CircuitGraph) -> dict[str, float]:
    """Measure which share of all |effects| a node and the stronger ones have: from the strongest, up to 1."""
    nodes, so_far, influences = ranked(circuit), 0.0, {}
    total = sum(abs(node.effect) for node in nodes)
    for node in nodes:
        so_far += abs(node.effect)
        influences[node.name] = min(1.0, so_far / total) if total else 0.0
    return influences
