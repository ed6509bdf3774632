"""Editing with a circuit: nodes that were judged spurious are ablated, and it is measured what else changes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from param_features.circuits.ablation import read_other_data
from param_features.circuits.baselines import Resample
from param_features.circuits.groups import WeightGroup
from param_features.circuits.metric import Metric, checked_values, read_metric
from param_features.circuits.passes import CircuitSubject
from param_features.errors import InputError, SettingError, nearest
from param_features.machine import Block, shown
from param_features.params import held_still
from param_features.problem import KL


@dataclass(frozen=True)
class Shift:
    """What an ablation of nodes does to the metric, and to everything else; random ablations of as many features beside.

    Attributes:
        nodes: What was ablated.
        metric: Name of the metric.
        before: Its mean over the circuit's prompts.
        after: The same without the nodes.
        after_random: The same without as many random features of the same groups, mean over draws.
        side: Name of the metric that is to stay; empty where none was given.
        side_before: Its mean over the other data.
        side_after: The same without the nodes.
        side_after_random: The same without random features.
        kl: Mean KL(before ‖ after) over the other data's outputs, in nats; NaN for outputs that are no logits.
        kl_random: The same for random features.
    """

    nodes: tuple[str, ...]
    metric: str
    before: float
    after: float
    after_random: float
    side: str = ""
    side_before: float = float("nan")
    side_after: float = float("nan")
    side_after_random: float = float("nan")
    kl: float = float("nan")
    kl_random: float = float("nan")

    def __repr__(self) -> str:
        """Print the changes, with those of random features in brackets."""
        lines = [f"Without {len(self.nodes)} nodes (random features in brackets):"]
        lines.append(f"  {self.metric}: {self.before:.4g} → {self.after:.4g} ({self.after_random:.4g})")
        if self.side:
            changes = f"{self.side_before:.4g} → {self.side_after:.4g} ({self.side_after_random:.4g})"
            lines.append(f"  on other data, {self.side}: {changes}")
            lines.append(f"  on other data, KL in nats: {self.kl:.4g} ({self.kl_random:.4g})")
        return "\n".join(lines)


def measure_shift(
    subject: CircuitSubject, names: Sequence[str], others: Any, side: Any, *, n_random: int, seed: int
) -> Shift:
    """Ablate nodes, and measure the metric and the side effects; see `Circuit.shift`."""
    marked = marked_nodes(subject, names)
    generator = torch.Generator().manual_seed(seed)
    rivals = [_random_like(subject, marked, generator) for _ in range(n_random)]

    def after(nodes: Bool[Tensor, " node"]) -> float:
        return float(subject.values(subject.amounts_removing(nodes)).mean())

    before = float(subject.values().mean())
    shift = Shift(tuple(names), subject.metric.name, before, after(marked), _mean([after(rival) for rival in rivals]))
    if others is None:
        return shift
    elsewhere = _on_other_data(subject, others, read_metric(side))
    whole = _output(elsewhere, torch.zeros_like(marked))
    of_nodes = _metric_and_kl(elsewhere, whole, marked)
    of_rivals = [_metric_and_kl(elsewhere, whole, rival) for rival in rivals]
    return replace(
        shift,
        side=elsewhere.metric.name,
        side_before=_measured(elsewhere, whole),
        side_after=of_nodes[0],
        side_after_random=_mean([pair[0] for pair in of_rivals]),
        kl=of_nodes[1],
        kl_random=_mean([pair[1] for pair in of_rivals]),
    )


def running_without(subject: CircuitSubject, names: Sequence[str]) -> Block:
    """A block in which the user's model lacks some nodes, whatever it is run on; see `Circuit.without`."""
    marked = marked_nodes(subject, names)
    if isinstance(subject.baseline, Resample):
        raise SettingError(
            "This circuit was found by resample ablation, and outside its prompts there is nothing to resample from. Find "
            "it with ablation='mean' or 'zero'."
        )
    amounts = {name: part[:1] for name, part in subject.amounts_removing(marked).items()}
    return Block(lambda: subject.with_amounts(amounts, of_any_batch=True), f"circuit.without({shown(list(names))})")


def marked_nodes(subject: CircuitSubject, names: Sequence[str]) -> Bool[Tensor, " node"]:
    """Mark the nodes that are named.

    Raises:
        SettingError: None are, or there is no such node.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = subject.names
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"No node {unknown[0]!r}. Nearest: {nearest(unknown[0], known)}." if unknown else "No node is given."
        raise SettingError(f"{problem} Nodes are named as in circuit.nodes.")
    return torch.tensor([name in set(names) for name in known])


def _random_like(
    subject: CircuitSubject, marked: Bool[Tensor, " node"], generator: torch.Generator
) -> Bool[Tensor, " node"]:
    """Draw as many features of the same groups, at random among the others where there are enough."""
    drawn = torch.zeros_like(marked)
    start = 0
    for group in subject.groups:
        in_group = marked[start : start + group.n_features]
        free = (~in_group).nonzero().flatten()
        pool = free if len(free) >= int(in_group.sum()) else torch.arange(group.n_features)
        drawn[start + pool[torch.randperm(len(pool), generator=generator)[: int(in_group.sum())]]] = True
        start += group.n_nodes
    return drawn


def _on_other_data(subject: CircuitSubject, others: Any, side: Metric) -> CircuitSubject:
    """Put the subject on other data, with the same nodes and baselines."""
    if isinstance(subject.baseline, Resample):
        raise SettingError("Side effects need ablation='mean' or 'zero': resampling is defined on the prompts alone.")
    inputs = read_other_data(subject, others)
    if inputs is None:
        raise InputError("No other data are given.")
    return replace(subject.on(inputs), metric=side)


def _output(subject: CircuitSubject, nodes: Bool[Tensor, " node"]) -> Tensor:
    """Run the model without some nodes."""
    with held_still(subject.adapter.module), torch.no_grad(), subject.with_amounts(subject.amounts_removing(nodes)):
        return subject.adapter.run(*subject.inputs.args, **subject.inputs.kwargs)


def _metric_and_kl(subject: CircuitSubject, before: Tensor, nodes: Bool[Tensor, " node"]) -> tuple[float, float]:
    """Measure the metric's mean without some nodes, and KL(before ‖ after), from one run."""
    after = _output(subject, nodes)
    return _measured(subject, after), _kl(subject, before, after)


def _measured(subject: CircuitSubject, output: Tensor) -> float:
    values = subject.metric.on(subject.adapter, subject.inputs)(output)
    return float(checked_values(values, len(subject.inputs), subject.metric.name).double().mean())


def _kl(subject: CircuitSubject, before: Tensor, after: Tensor) -> float:
    """Average KL(before ‖ after) over real samples; NaN where the features were not fitted to logits."""
    divergence = KL()
    if not any(isinstance(group, WeightGroup) and isinstance(group.features.divergence, KL) for group in subject.groups):
        return float("nan")
    real = subject.is_real
    pair = [
        output.double().flatten(1) if real is None or output.dim() < 3 else output.double()[real.to(output.device)]
        for output in (before, after)
    ]
    return float(divergence.value(pair[1], divergence.to_reference(pair[0])).mean())


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
