"""`pf.circuit`: nodes by their effects, edges by what flows through both ends, scores beside random circuits."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.choose import by_growth, by_threshold
from param_features.circuits.circuit_methods import Circuit
from param_features.circuits.effects import IndirectEffects, check_method, effects_of, read_subject
from param_features.circuits.examples import described
from param_features.circuits.graph import Edge, Node
from param_features.circuits.groups import Group
from param_features.circuits.passes import CircuitSubject
from param_features.circuits.scores import score, with_random_directions
from param_features.circuits.tangents import direct_flow
from param_features.errors import SettingError
from param_features.machine import own_modes, public

OUTPUT = "output"
"""Name of the node that is the metric."""


@public
@own_modes()
def circuit(
    features: Any,
    prompts: Any = None,
    metric: Any = "loss",
    *,
    inputs: Any = None,
    saes: Any = None,
    n_nodes: int | None = None,
    threshold: float | None = None,
    edge_threshold: float = 0.01,
    method: str = "attribution",
    ablation: str = "mean",
    n_steps: int = 10,
    n_rounds: int = 10,
    n_check: int = 16,
    n_random: int = 20,
    n_examples: int = 3,
    background: Any = None,
    counterparts: Any = None,
    seed: int = 0,
) -> Circuit:
    """Find a graph of features that explains a metric on prompts, and measure what it is worth.

    Nodes are parameter features, SAE features, and for each group one error: what the features leave of the weights or of
    the activations. Parameter features are local directions that need not add up to W; a circuit keeps the weights'
    projection onto the span of its features, beside the error. Errors are always nodes, and never count in `n_nodes`.

    An edge's weight is the mixed effect of its ends: how much of the earlier node's effect arrives first at the later one
    and acts through it, ∂²m/∂α_u∂α_d · h_u h_d with all that lies above the later one held. What flows from a node along
    all its edges, the one to the output among them, is its attribution (up to overlaps between directions).

    Cost: `n_rounds` forward and backward passes for the nodes, one forward-mode pass for each kept node for the edges, and
    about 4 · n_random + n_nodes forward passes for the scores. Memory: a graph of the model on all prompts.

    Args:
        features: One set of features, several in a list or mapping, of one model.
        prompts: Tokens [prompt, pos], or strings.
        metric: `"loss"`, `pf.circuits.LogitDifference(…)`, `pf.circuits.LogProbability(…)`, or a function of the model's
            output to one number for each prompt.
        inputs: Instead of prompts, anything that the module takes.
        saes: SAEs and transcoders; see `pf.circuits.indirect_effects`.
        n_nodes: How many features to keep: grown from nothing, the most promising first; a tenth of all by default.
        threshold: Instead, keep features whose mean effect has at least this size, in the metric's units.
        edge_threshold: Edges are kept from this share of the largest edge's size.
        method: How effects are estimated: `"attribution"`, `"integrated"` or `"exact"`.
        ablation: `"mean"`, `"zero"` or `"resample"`; see `pf.circuits.indirect_effects`.
        n_steps: Of the integral.
        n_rounds: Of growing.
        n_check: How many effects are checked by exact ablation.
        n_random: Random circuits of each kind beside the scores; 0 leaves the scores out.
        n_examples: Examples of each node.
        background: Tokens for the means; the prompts by default.
        counterparts: For `"resample"`, one other prompt for each.
        seed: Of every random choice.

    Returns:
        The circuit, with its scores; prints itself. It keeps the model: `circuit.without(…)`, `circuit.shift(…)`.

    Raises:
        SettingError: An unknown method, ablation or metric; both or neither of the ways to choose nodes out of range.
        NotBoundError: Features without a model.
        FeatureMismatchError: Features of different models, or two sets of the same parameter.
        AdapterError: A parameter without a layer rule, or an SAE that cannot be taken apart.
        InputError: Prompts that the model cannot take.
        OutputError: The metric does not give one number for each prompt.

    Source: Marks et al. (2403.19647), section 3, for SAE features. Differs: nodes are steps in the weights, positions are
        not told apart, and nodes are grown with effects taken anew, for features overlap.
    """
    check_method(method, n_steps)
    _check_settings(n_nodes, threshold, edge_threshold, n_rounds)
    bare = read_subject(features, prompts, inputs, metric, saes)
    chosen = Ablation(ablation, background, counterparts, seed)
    subject = ablating(bare, chosen)
    effects = effects_of(subject, method, ablation=ablation, n_steps=n_steps, n_check=n_check)
    if threshold is not None:
        is_kept = by_threshold(effects.mean, subject, threshold)
    else:
        n_default = max(1, round(int((~subject.is_error).sum()) / 10))
        is_kept = by_growth(subject, n_nodes or n_default, n_rounds)
    generator, scores = torch.Generator().manual_seed(seed), dict[str, float]()
    if n_random > 0:
        drawn = ablating(with_random_directions(bare, generator), chosen)
        scores = score(subject, is_kept, n_random=n_random, generator=generator, randomised=drawn)
    record = {
        "method": method,
        "ablation": ablation,
        "chosen_by": "growth" if threshold is None else f"threshold {threshold:g}",
        "correlation": effects.correlation if isfinite(effects.correlation) else None,
        "n_checked": len(effects.checked),
        "edge_threshold": edge_threshold,
        "unit": subject.metric.unit,
        "seed": seed,
    }
    edges = _edges(subject, is_kept, edge_threshold)
    nodes = _NodeMaker(subject, effects, n_examples).all(is_kept)
    strings = tuple(tuple(subject.adapter.to_strings(row)) for row in subject.inputs.token_rows)
    return Circuit(nodes, edges, strings, subject.metric.name, record, scores, subject)


def _check_settings(n_nodes: int | None, threshold: float | None, edge_threshold: float, n_rounds: int) -> None:
    if n_nodes is not None and threshold is not None:
        raise SettingError(f"n_nodes={n_nodes} and threshold={threshold} both choose the nodes. Give one of them.")
    if threshold is not None and not threshold > 0:
        raise SettingError(
            f"threshold={threshold} must be positive: the least size of a kept effect, in the metric's units."
        )
    if not 0 <= edge_threshold < 1:
        raise SettingError(f"edge_threshold={edge_threshold} must lie in [0, 1): a share of the largest edge's size.")
    if n_rounds < 1:
        raise SettingError(f"n_rounds={n_rounds} must be 1 or more; 10 is usual.")


@dataclass(frozen=True)
class _NodeMaker:
    """Makes a circuit's nodes from the subject's: their effects, labels and examples."""

    subject: CircuitSubject
    effects: IndirectEffects
    n_examples: int

    def all(self, is_kept: Bool[Tensor, " node"]) -> tuple[Node, ...]:
        nodes: list[Node] = []
        parts = is_kept.split([group.n_nodes for group in self.subject.groups])
        for depth, (group, part) in enumerate(zip(self.subject.groups, parts, strict=True)):
            numbers = [k for k in part.nonzero().flatten().tolist() if k < group.n_features]
            descriptions = described(self.subject, group, numbers, self.n_examples)
            nodes += [
                self._feature(group, depth, k, *description) for k, description in zip(numbers, descriptions, strict=True)
            ]
            if group.has_error:
                name = group.names[-1]
                nodes.append(Node(name, group.name, "error", depth, self._effects(name)))
        values = tuple(self.effects.of_prompts.tolist())
        return (*nodes, Node(OUTPUT, OUTPUT, "output", len(self.subject.groups), values, label=self.subject.metric.name))

    def _feature(self, group: Group, depth: int, k: int, label: str, examples: Sequence) -> Node:
        name = group.names[k]
        return Node(name, group.name, group.kind, depth, self._effects(name), k, label, tuple(examples))

    def _effects(self, name: str) -> tuple[float, ...]:
        return tuple(self.effects[name].tolist())


def _edges(subject: CircuitSubject, is_kept: Bool[Tensor, " node"], least_share: float) -> tuple[Edge, ...]:
    """Make the edges between kept nodes of different groups, and to the output, from a share of the largest on."""
    weights = edge_weights(subject, is_kept)
    nodes = is_kept.nonzero().flatten().tolist()
    names = [*(subject.names[node] for node in nodes), OUTPUT]
    floor = float(weights.abs().max()) * least_share
    edges = []
    for row, source in enumerate(names[:-1]):
        for column, target in enumerate(names):
            weight = float(weights[row, column])
            if weight != 0 and abs(weight) >= floor:
                edges.append(Edge(source, target, weight))
    return tuple(sorted(edges, key=lambda edge: -abs(edge.weight)))


def edge_weights(subject: CircuitSubject, is_kept: Bool[Tensor, " node"]) -> Float[Tensor, "kept kept_and_output"]:
    """Measure the mean over prompts of what flows from each kept node into each, and into the output; none within a group.

    Cost: a forward and a backward pass, and a forward-mode pass for each kept node.
    """
    clean, amounts_held, group_of = subject.slopes(), subject.holds, subject.group_of
    nodes, rows = is_kept.nonzero().flatten(), []
    for node in nodes.tolist():
        step = {name: -part for name, part in subject.amounts_lacking(node).items()}
        flows, straight = direct_flow(subject, clean, step)
        into = subject.joined(flows).mean(0) * amounts_held
        into = torch.where(group_of == group_of[node], 0.0, into)
        rows.append(torch.cat([into[nodes], straight.mean().reshape(1)]))
    return torch.stack(rows)
