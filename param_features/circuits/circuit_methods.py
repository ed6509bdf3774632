"""`Circuit`: the graph with all that one does with it: print, display, save, export, and edit the model by it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from param_features.circuits.export import load_graph, save_graph
from param_features.circuits.export_graph import to_networkx
from param_features.circuits.export_neuronpedia import save_neuronpedia
from param_features.circuits.graph import CircuitGraph
from param_features.circuits.passes import CircuitSubject
from param_features.circuits.shift import Shift, measure_shift, running_without
from param_features.circuits.tables import circuit_summary, node_table
from param_features.circuits.view import CircuitView, circuit_view
from param_features.errors import NotBoundError
from param_features.machine import Block, methods_in_own_modes, public
from param_features.views import show

if TYPE_CHECKING:
    import networkx as nx


@methods_in_own_modes
@dataclass(frozen=True, eq=False, repr=False)
class Circuit(CircuitGraph):
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

    subject: CircuitSubject | None = field(default=None, repr=False)

    @public
    def without(self, nodes: Sequence[str]) -> Block:
        """Run the user's own model without some nodes, on any inputs, in a `with` block; no weight is touched.

        Nodes are ablated as the circuit's were: their part is replaced by its mean, or taken away.

        Args:
            nodes: Their names.

        Raises:
            NotBoundError: The circuit was loaded and has no model.
            SettingError: There is no such node, or the circuit was found by resampling.
        """
        return running_without(self._bound("without"), nodes)

    @public
    def shift(
        self, nodes: Sequence[str], *, others: Any = None, metric: Any = "loss", n_random: int = 10, seed: int = 0
    ) -> Shift:
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
        return measure_shift(self._bound("shift"), nodes, others, metric, n_random=n_random, seed=seed)

    def _bound(self, method: str) -> CircuitSubject:
        if self.subject is None:
            raise NotBoundError(
                f"{method}() needs the model, and this circuit was loaded without one. Find it again with pf.circuit(…)."
            )
        return self.subject

    def __repr__(self) -> str:
        """Print the metric, counts, scores beside their controls, groups, and the strongest nodes."""
        return circuit_summary(self)

    @public
    def table(self, n: int | None = None) -> str:
        """Write a line for each of the `n` strongest nodes: name, kind, effect, its spread over prompts, label, example."""
        return node_table(self, n)

    @public
    def view(self, n: int | None = None, *, n_examples: int = 3) -> CircuitView:
        """Make the object that `show` displays: `str()` is coloured text, a notebook draws it, `.save(path)` writes a page.

        Args:
            n: How many nodes, strongest first; all by default.
            n_examples: Texts shown for each.

        Raises:
            NonFiniteError: A strength is NaN or infinite.
        """
        return circuit_view(self, n, n_examples=n_examples)

    @public
    def show(self, n: int | None = None, *, n_examples: int = 3) -> None:
        """Display the nodes with the texts on which they are strong: blue is positive, red negative. See `view`."""
        show(self.view(n, n_examples=n_examples))

    def _repr_html_(self) -> str:
        return self.view()._repr_html_()

    @public
    def save(self, path: str | PathLike) -> Path:
        """Write the circuit as one JSON file, data only; returns its path.

        Raises:
            ExportError: Its parts do not fit together, or the record holds what JSON cannot express.
        """
        return save_graph(self, path)

    @classmethod
    @public
    def load(cls, path: str | PathLike) -> "Circuit":
        """Read what `save` wrote, and check every part of it. Tuples in the record come back as lists.

        Raises:
            StoreError: The file is missing, cut short, edited, foreign, or its parts do not fit together.
        """
        graph = load_graph(path)
        return cls(graph.nodes, graph.edges, graph.prompts, graph.metric, graph.record, graph.scores)

    def to_networkx(self) -> "nx.DiGraph":
        """Turn the circuit into a networkx graph, with every field of its nodes and edges as an attribute.

        Raises:
            ExportError: Its parts do not fit together.
            MissingExtraError: networkx is not installed.
        """
        return to_networkx(self)

    @public
    def to_neuronpedia(self, path: str | PathLike, *, slug: str, scan: str, prompt: int = 0) -> Path:
        """Write an attribution graph as Neuronpedia reads it, for `https://www.neuronpedia.org/graph/validator` and upload.

        circuit-tracer reads it too: `circuit_tracer.frontend.graph_models.Model`; its own viewer lists the graphs that stand
        in `graph-metadata.json` beside them, to which `circuit_tracer.frontend.utils.add_graph_metadata` adds one. An empty
        token stands before a prompt of one, of which both viewers would delete every node.

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
        return save_neuronpedia(self, path, slug=slug, scan=scan, prompt=prompt)
