"""What a circuit consists of: nodes, edges between them, and how well they explain a metric."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from param_features.errors import NotBoundError

if TYPE_CHECKING:
    from param_features.circuits.shift import Shift

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
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

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
