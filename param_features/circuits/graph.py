"""What a circuit consists of: nodes, edges between them, and how well they explain a metric."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from param_features.errors import SettingError, nearest

Kind = Literal["parameter", "sae", "error", "output"]


@dataclass(frozen=True)
class NodeExample:
    """A place where a node's feature is strong.

    Attributes:
        tokens: The text around it.
        strengths: The feature's activation at each token, signed.
        position: Which token was chosen.
    """

    tokens: tuple[str, ...]
    strengths: tuple[float, ...]
    position: int


@dataclass(frozen=True)
class Node:
    """One feature in a circuit, what a set of features leaves out, or the metric.

    Attributes:
        name: `"blocks.2.attn.W_K/3"`: the group and the feature; `"blocks.2.attn.W_K/error"` for what is left out.
        group: The feature set that it belongs to: parameters' names, or the place where an SAE or a transcoder writes.
        kind: `"parameter"`, `"sae"`, `"error"`, or `"output"` for the metric itself.
        depth: Place of the group in the forward pass, 0 first; the output is deepest.
        effects: What its ablation takes from the metric, for each prompt, in the metric's units: metric with the node less
            metric without it.
        feature: Its number in the group; None for errors and the output.
        label: What it stands for, in a few words; may be empty.
        examples: Where its feature is strong.
    """

    name: str
    group: str
    kind: Kind
    depth: int
    effects: tuple[float, ...]
    feature: int | None = None
    label: str = ""
    examples: tuple[NodeExample, ...] = ()

    @property
    def effect(self) -> float:
        """The mean of `effects` over prompts; 0 where none was measured."""
        return sum(self.effects) / len(self.effects) if self.effects else 0.0


@dataclass(frozen=True)
class Edge:
    """A connection of two nodes: how much of the source's effect passes through the target.

    Attributes:
        source: Name of the node that lies earlier in the forward pass.
        target: Name of the later node.
        weight: Mean over prompts, in the metric's units; signed as an effect is.
    """

    source: str
    target: str
    weight: float


@dataclass(frozen=True, eq=False)
class CircuitGraph:
    """The data of a circuit: what is saved, drawn and exported.

    Attributes:
        nodes: Those that were kept, early ones first, the output last.
        edges: Between kept nodes, and from them to the output.
        prompts: The tokens of each prompt, as strings.
        metric: What it explains.
        record: How it was found: ablation, method, thresholds, and the correlation of the effects with exact ones.
        scores: How well it explains the metric, beside random circuits; empty until measured. Flat, by name.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    prompts: tuple[tuple[str, ...], ...]
    metric: str
    record: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Node:
        """Find the node of that name.

        Raises:
            SettingError: There is none.
        """
        nodes = {node.name: node for node in self.nodes}
        if name not in nodes:
            raise SettingError(f"This circuit has no node {name!r}. Nearest: {nearest(name, nodes)}.")
        return nodes[name]
