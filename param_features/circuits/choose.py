"""Which nodes make a circuit: those with the largest effects, or those that bring the metric back one after the other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.passes import CircuitSubject
from param_features.errors import SettingError


def by_threshold(effects: Float[Tensor, " node"], subject: CircuitSubject, threshold: float) -> Bool[Tensor, " node"]:
    """Features whose mean effect is at least `threshold` in size, in the metric's units; errors are kept besides.

    Raises:
        SettingError: No feature reaches it.
    """
    kept = (effects.abs() >= threshold) & ~subject.is_error
    if not bool(kept.any()):
        largest = float(effects[~subject.is_error].abs().max())
        raise SettingError(f"No feature's effect reaches threshold={threshold}. The largest is {largest:.3g}: go below it.")
    return kept | subject.is_error


def by_growth(subject: CircuitSubject, n_nodes: int, n_rounds: int, n_steps: int = 4) -> Bool[Tensor, " node"]:
    """`n_nodes` features, added to nothing but the errors in rounds; each takes those that promise most where it stands.

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
    kept, wanted = subject.is_error.clone(), float(subject.values().mean())
    for size in _sizes(n_nodes, n_rounds):
        promised = _promises(subject, kept, n_steps)
        promised = promised if float(subject.values(subject.kept(kept)).mean()) <= wanted else -promised
        best = torch.where(kept, -torch.inf, promised).argsort(descending=True)[:size]
        kept[best] = True
    return kept


def _promises(subject: CircuitSubject, kept: Bool[Tensor, " node"], n_steps: int) -> Float[Tensor, " node"]:
    """What each node is missing, times its slope over the way to the model, midpoints of `n_steps` parts."""
    amounts, total = subject.kept(kept), torch.zeros(len(kept), dtype=torch.float64)
    for step in range(n_steps):
        share = 1 - (step + 0.5) / n_steps
        slopes = subject.slopes({name: part * share for name, part in amounts.items()})
        total += subject.joined(slopes.by_node).mean(0) / n_steps
    return total * subject.missing(kept)


def _sizes(n_nodes: int, n_rounds: int) -> list[int]:
    """How many nodes each round adds."""
    rounds = min(n_rounds, n_nodes)
    return [len(part) for part in torch.arange(n_nodes).tensor_split(rounds)]
