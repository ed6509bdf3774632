"""Which nodes make a circuit: those with the largest effects, or those that bring the metric back one after the other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.passes import CircuitSubject
from param_features.errors import SettingError


def by_threshold(effects: Float[Tensor, " node"], subject: CircuitSubject, threshold: float) -> Bool[Tensor, " node"]:
    """Mark the features whose mean effect is at least `threshold` in size, in the metric's units; errors are kept besides.

    Raises:
        SettingError: No feature reaches it.
    """
    is_kept = (effects.abs() >= threshold) & ~subject.is_error
    if not bool(is_kept.any()):
        largest = float(effects[~subject.is_error].abs().max())
        raise SettingError(f"No feature's effect reaches threshold={threshold}. The largest is {largest:.3g}: go below it.")
    return is_kept | subject.is_error


def by_growth(subject: CircuitSubject, n_nodes: int, n_rounds: int, n_steps: int = 4) -> Bool[Tensor, " node"]:
    """Mark `n_nodes` features, added in rounds to nothing but the errors; each round takes those that then promise most.

    What a node promises is how much of it is missing times the metric's mean slope by its amount on the straight way from
    the circuit so far to the whole model, in the direction in which the metric still has to go. The way counts, for where
    nodes work in series, none of them alone does anything. Promises are taken anew after each round: nodes that only say
    again what others say already lose theirs. Cost: `n_steps` forward and backward passes for each round.

    Raises:
        SettingError: There are not as many features.
    """
    n_features = int((~subject.is_error).sum())
    if not 1 <= n_nodes <= n_features:
        raise SettingError(f"n_nodes={n_nodes}, and there are {n_features} features. Ask for 1 to {n_features}.")
    is_kept, target = subject.is_error.clone(), float(subject.values().mean())
    for size in _sizes(n_nodes, n_rounds):
        promises = _promises(subject, is_kept, n_steps)
        promises = promises if float(subject.values(subject.amounts_keeping(is_kept)).mean()) <= target else -promises
        best = torch.where(is_kept, -torch.inf, promises).argsort(descending=True)[:size]
        is_kept[best] = True
    return is_kept


def _promises(subject: CircuitSubject, is_kept: Bool[Tensor, " node"], n_steps: int) -> Float[Tensor, " node"]:
    """Multiply what each node is missing by its slope over the way to the model, midpoints of `n_steps` parts."""
    amounts, total = subject.amounts_keeping(is_kept), torch.zeros(len(is_kept), dtype=torch.float64)
    for step in range(n_steps):
        share = 1 - (step + 0.5) / n_steps
        slopes = subject.slopes({name: part * share for name, part in amounts.items()})
        total += subject.joined(slopes.by_node).mean(0) / n_steps
    return total * subject.missing(is_kept)


def _sizes(n_nodes: int, n_rounds: int) -> list[int]:
    """Divide the number of nodes among the rounds."""
    rounds = min(n_rounds, n_nodes)
    return [len(part) for part in torch.arange(n_nodes).tensor_split(rounds)]
