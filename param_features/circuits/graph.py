"""What a circuit consists of: nodes, edges between them, and how well they explain a metric."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from param_features.errors import NotBoundError, SettingError, nearest

if TYPE_CHECKING:
    import networkx as nx

    from param_features.circuits.shift import Shift
    from param_features.circuits.view import CircuitView

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
        group: The feature set that it belongs to: parameters' names, or an SAE's place.
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
        """Mean over prompts."""
        return sum(self.effects) / len(self.effects) if self.effects else 0.0


@dataclass(frozen=True)
class Edge:
    """How much of the source's effect passes through the target.

    Attributes:
        source: Name of the node that lies earlier in the forward pass.
        target: Name of the later node.
        weight: Mean over prompts, in the metric's units; signed as an effect is.
    """

    source: str
    target: str
    weight: float


@dataclass(frozen=True, eq=False)
class Circuit:
    """A graph of features that explains a metric on prompts.

    Attributes:
        nodes: Those that were kept, early ones first, the output last.
        edges: Between kept nodes, and from them to the output.
        prompts: The tokens of each prompt, as strings.
        metric: What it explains.
        record: How it was found: ablation, method, thresholds, and the correlation of the effects with exact ones.
        scores: How well it explains the metric, beside random circuits; empty until measured. Flat, by name.
        subject: The model with its nodes at hand, where the circuit was found; None for one that was loaded.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    prompts: tuple[tuple[str, ...], ...]
    metric: str
    record: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    subject: Any = field(default=None, repr=False)

    def __getitem__(self, name: str) -> Node:
        """The node of that name.

        Raises:
            SettingError: There is none.
        """
        found = {node.name: node for node in self.nodes}
        if name not in found:
            raise SettingError(f"This circuit has no node {name!r}. Nearest: {nearest(name, found)}.")
        return found[name]

    def without(self, nodes: Sequence[str]) -> AbstractContextManager[None]:
        """Run the user's own model without some nodes, on any inputs, in a `with` block; no weight is touched.

        Nodes are ablated as the circuit's were: their part is replaced by its mean, or taken away.

        Args:
            nodes: Their names.

        Raises:
            NotBoundError: The circuit was loaded and has no model.
            SettingError: There is no such node, or the circuit was found by resampling.
        """
        from param_features.circuits.shift import without  # a circuit without a model needs no torch

        return without(self._bound("without"), nodes)

    def shift(
        self, nodes: Sequence[str], *, others: Any = None, metric: Any = "loss", n_random: int = 10, seed: int = 0
    ) -> "Shift":
        """Ablate nodes that were judged spurious, and measure the target and the side effects, beside random features.

        Cost: a few forward passes for each of `n_random` sets of as many random features of the same groups.

        Args:
            nodes: Their names.
            others: Data that should not change, as tokens or inputs; None measures the target alone.
            metric: What is measured on these; KL between outputs is measured besides.
            n_random: Sets of random features.
            seed: Of their draws.

        Raises:
            NotBoundError: The circuit was loaded and has no model.
            SettingError: There is no such node, or the circuit was found by resampling and `others` are given.
            InputError: Data that the model cannot take.

        Source: SHIFT (Marks et al., 2403.19647, section 5), with nodes that are steps in the weights.
        """
        from param_features.circuits.shift import measure_shift

        return measure_shift(self._bound("shift"), nodes, others, metric, n_random=n_random, seed=seed)

    def _bound(self, call: str) -> Any:
        if self.subject is None:
            raise NotBoundError(
                f"{call}() needs the model, and this circuit was loaded without one. Find it again with pf.circuit(…)."
            )
        return self.subject

    def __repr__(self) -> str:
        """The metric, counts, scores beside their controls, groups, and the strongest nodes."""
        from param_features.circuits.tables import summary

        return summary(self)

    def table(self, n: int | None = None) -> str:
        """A line for each of the `n` strongest nodes: name, kind, effect and its spread over prompts, label, an example."""
        from param_features.circuits.tables import table

        return table(self, n)

    def view(self, n: int | None = None, *, n_examples: int = 3) -> "CircuitView":
        """What `show` displays, as an object: `str()` is coloured text, a notebook draws it, `.save(path)` writes a page.

        Args:
            n: How many nodes, strongest first; all by default.
            n_examples: Texts shown for each.

        Raises:
            NonFiniteError: A strength is NaN or infinite.
        """
        from param_features.circuits.view import circuit_view

        return circuit_view(self, n, n_examples=n_examples)

    def show(self, n: int | None = None, *, n_examples: int = 3) -> None:
        """Display the nodes with the texts on which they are strong: blue is positive, red negative. See `view`."""
        from param_features.views import show

        show(self.view(n, n_examples=n_examples))

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()

    def save(self, path: str | PathLike) -> Path:
        """Write the circuit as one JSON file, data only; returns its path.

        Raises:
            ExportError: Its parts do not fit together, or the record holds what JSON cannot express.
        """
        from param_features.circuits.export import save_circuit

        return save_circuit(self, path)

    @classmethod
    def load(cls, path: str | PathLike) -> "Circuit":
        """Read what `save` wrote, and check every part of it. Tuples in the record come back as lists.

        Raises:
            StoreError: The file is missing, cut short, edited, foreign, or its parts do not fit together.
        """
        from param_features.circuits.export import load_circuit

        return load_circuit(path)

    def to_networkx(self) -> "nx.DiGraph":
        """The circuit as a networkx graph, with every field of its nodes and edges as an attribute.

        Raises:
            ExportError: Its parts do not fit together.
            MissingExtraError: networkx is not installed.
        """
        from param_features.circuits.export_graph import to_networkx

        return to_networkx(self)

    def to_neuronpedia(self, path: str | PathLike, *, slug: str, scan: str, prompt: int = 0) -> Path:
        """Write an attribution graph as Neuronpedia reads it, for `https://www.neuronpedia.org/graph/validator` and upload.

        Weights act at every position, so nodes have none of their own: each stands at the prompt's last one. Effects and
        weights are means over the circuit's prompts, and the metric is the one output, of weight 1. The site shows names,
        labels and edges; it has no pages for these features, and calls error nodes after the token.

        Args:
            path: The file.
            slug: The graph's name on the site.
            scan: The model's name on the site, such as `"gemma-2-2b"`; the site must know it.
            prompt: Which of the circuit's prompts is shown.

        Returns:
            The file's path.

        Raises:
            SettingError: `slug` or `scan` hold what the site refuses, or there is no such prompt.
            ExportError: The circuit's parts do not fit together, or it has no node but the output.
        """
        from param_features.circuits.export_neuronpedia import save_neuronpedia

        return save_neuronpedia(self, path, slug=slug, scan=scan, prompt=prompt)
