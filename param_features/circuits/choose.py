"""Which nodes make a circuit: those with the largest effects, or those that bring the metric back one after the other."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.passes import Subject
from param_features.errors import SettingError


def by_threshold(effects: Float[Tensor, " node"], subject: Subject, threshold: float) -> Bool[Tensor, " node"]:
    """Features whose mean effect is at least `threshold` in size, in the metric's units; errors are kept besides.

    Raises:
        SettingError: No feature reaches it.
    """
    kept = (effects.abs() >= threshold) & ~subject.is_error
    if not bool(kept.any()):
        largest = float(effects[~subject.is_error].abs().max())
        raise SettingError(f"No feature's effect reaches threshold={threshold}. The largest is {largest:.3g}: go below it.")
    return kept | subject.is_error


def by_growth(subject: Subject, n_nodes: int, n_rounds: int) -> Bool[Tensor, " node"]:
    """`n_nodes` features, added to nothing but the errors in rounds; each takes those that promise most where it stands.

    What a node promises is the metric's slope by its amount times how much of it is missing, in the direction in which the
    metric still has to go. Estimates are local, so they are taken again after each round: nodes that only say again what
    others say already lose their promise. Cost: a forward and a backward pass for each round.

    Raises:
        SettingError: There are not as many features.
    """
    n_features = int((~subject.is_error).sum())
    if not 1 <= n_nodes <= n_features:
        raise SettingError(f"n_nodes={n_nodes}, and there are {n_features} features. Ask for 1 to {n_features}.")
    kept, wanted = subject.is_error.clone(), subject.values().mean()
    for size in _sizes(n_nodes, n_rounds):
        slopes = subject.slopes(subject.kept(kept))
        promised = subject.joined(slopes.by_node).mean(0) * subject.missing(kept)
        promised = promised if float(slopes.values.double().mean()) <= float(wanted) else -promised
        best = torch.where(kept, -torch.inf, promised).argsort(descending=True)[:size]
        kept[best] = True
    return kept


def _sizes(n_nodes: int, n_rounds: int) -> list[int]:
    """How many nodes each round adds."""
    rounds = min(n_rounds, n_nodes)
    return [len(part) for part in torch.arange(n_nodes).tensor_split(rounds)]
