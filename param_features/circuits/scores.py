"""What a circuit is worth: faithfulness, completeness and minimality, beside random circuits and random directions."""

from dataclasses import replace
from math import isfinite

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.circuits.choose import by_growth
from param_features.circuits.groups import Group, WeightGroup
from param_features.circuits.passes import CircuitSubject
from param_features.circuits.places import SaePlace
from param_features.circuits.reading import weight_group
from param_features.errors import InputError
from param_features.measure import densities_of, random_like

_N_DRAWS, _NEAREST, _ROWS, _ROUNDS = 1000, 10, 16, 10


@torch.no_grad()
def score(
    subject: CircuitSubject,
    kept: Bool[Tensor, " node"],
    *,
    n_random: int,
    generator: torch.Generator,
    without: CircuitSubject,
) -> dict[str, float]:
    """Every score by name.

    `faithfulness` is (m(C) − m(∅)) / (m(M) − m(∅)): C the circuit, M the model, ∅ the model without any feature; errors stay
    in all three. `completeness` is the same for the model without the circuit's features: near 0 where nothing else does the
    circuit's work. `minimality` is the share of its features without which faithfulness falls by a hundredth of it or more.
    `…_random` is the mean of random circuits with as many features, `…_matched` of such whose features lie in the same
    groups and are as frequent, `…_best` the best of either. `faithfulness_low` and `_high` are the 5th and 95th percentile
    over prompts drawn with replacement. `gap` is m(M) − m(∅), and `gap_random` the same where as many random directions of
    the same rank are taken away: where the two are alike, the ratios say nothing. `faithfulness_directions` is that of as
    many random directions, grown from all of these as circuits are, in their own gap. `faithfulness_no_errors` leaves the
    errors out of C and ∅. Ratios of a gap of nothing are left out.
    Cost: two forward passes for each random circuit, one for each of the circuit's features, and growing a circuit.

    Args:
        subject: Whose nodes.
        kept: The circuit's nodes, errors among them.
        n_random: Random circuits of each kind.
        generator: Of every draw.
        without: The subject with random directions in the features' stead.

    Source: Marks et al. (2403.19647), section 4; Wang et al. (2211.00593) for minimality, here against the whole circuit.
    """
    errors, model = subject.is_error, subject.values()
    empty = subject.values(subject.kept(errors))
    own = subject.values(subject.kept(kept))
    rest = subject.values(subject.removed(kept & ~errors))

    def share(values: Tensor, low: Tensor = empty) -> float:
        return _ratio(values.mean() - low.mean(), model.mean() - low.mean())

    blank = subject.values(subject.kept(torch.zeros_like(kept)))
    found = {
        "n_features": float((kept & ~errors).sum()),
        "n_features_all": float((~errors).sum()),
        "metric_model": float(model.mean()),
        "metric_circuit": float(own.mean()),
        "metric_empty": float(empty.mean()),
        "gap": float(model.mean() - empty.mean()),
        "faithfulness": share(own),
        "completeness": share(rest),
        "faithfulness_no_errors": share(subject.values(subject.kept(kept & ~errors)), blank),
        "minimality": _minimality(subject, kept, own, model - empty),
    }
    low, high = _spread(own - empty, model - empty, generator)
    found |= {"faithfulness_low": low, "faithfulness_high": high}
    found |= _of_directions(without, model, int(found["n_features"]))
    for name, circuits in _rivals(subject, kept, n_random, generator).items():
        faithful = [share(subject.values(subject.kept(one))) for one in circuits]
        complete = [share(subject.values(subject.removed(one & ~errors))) for one in circuits]
        found |= {
            f"faithfulness_{name}": sum(faithful) / len(faithful),
            f"faithfulness_{name}_best": max(faithful),
            f"completeness_{name}": sum(complete) / len(complete),
        }
    return {name: value for name, value in found.items() if isfinite(value)}


def _of_directions(without: CircuitSubject, model: Float[Tensor, " prompt"], n_nodes: int) -> dict[str, float]:
    """A circuit of as many random directions, grown as circuits of features are, in the random directions' own gap."""
    empty = without.values(without.kept(without.is_error)).mean()
    found = {"gap_random": float(model.mean() - empty)}
    if n_nodes < 1:
        return found
    own = without.values(without.kept(by_growth(without, n_nodes, _ROUNDS))).mean()
    return found | {"faithfulness_directions": _ratio(own - empty, model.mean() - empty)}


def with_random_directions(subject: CircuitSubject, generator: torch.Generator) -> CircuitSubject:
    """The same with random directions of the same rank in the place of every parameter feature; zero baselines."""
    groups: list[Group] = []
    for group in subject.groups:
        if isinstance(group, WeightGroup):
            drawn = random_like(group.features.v_out, generator)
            group = weight_group(group.features.with_directions(drawn, group.features.v_in), group.name)
        groups.append(group)
    return replace(subject, groups=tuple(groups))


def _rivals(
    subject: CircuitSubject, kept: Bool[Tensor, " node"], n: int, generator: torch.Generator
) -> dict[str, list[Bool[Tensor, " node"]]]:
    """Random circuits of as many features: any, and in the same groups as frequent."""
    if n < 1:
        return {}
    features, n_kept = (~subject.is_error).nonzero().flatten(), int((kept & ~subject.is_error).sum())
    found: dict[str, list[Tensor]] = {"random": [], "matched": []}
    frequency = frequencies(subject)
    for _ in range(n):
        drawn = features[torch.randperm(len(features), generator=generator)[:n_kept]]
        found["random"].append(_marked(subject, drawn))
        found["matched"].append(_marked(subject, _matched(subject, kept, frequency, generator)))
    return found


def _marked(subject: CircuitSubject, nodes: Tensor) -> Bool[Tensor, " node"]:
    marks = subject.is_error.clone()
    marks[nodes] = True
    return marks


def _matched(
    subject: CircuitSubject, kept: Bool[Tensor, " node"], frequency: Float[Tensor, " node"], generator: torch.Generator
) -> Tensor:
    """For each of the circuit's features another of its group that is about as frequent; none twice where possible."""
    group_of, free, chosen = subject.group_of, ~kept, []
    for node in (kept & ~subject.is_error).nonzero().flatten().tolist():
        candidates = (free & (group_of == group_of[node])).nonzero().flatten()
        if not len(candidates):  # the circuit holds most of the group
            chosen.append(node)
            continue
        near = candidates[(frequency[candidates] - frequency[node]).abs().argsort()[:_NEAREST]]
        pick = int(near[torch.randint(len(near), (), generator=generator)])
        free = free.clone()
        free[pick] = False
        chosen.append(pick)
    return torch.tensor(chosen, dtype=torch.long)


def frequencies(subject: CircuitSubject) -> Float[Tensor, " node"]:
    """Share of samples on which each feature is kept: parameter features on 16 of their own examples, SAEs on the prompts.

    Cost: activations of 16 sequences for each set.
    """
    found, seen = [], subject.sources(subject.inputs)
    for group in subject.groups:
        if isinstance(group, WeightGroup):
            own = _own_densities(group)
        else:
            codes = [
                one.source[0] for (place, _), one in seen.items() if isinstance(place, SaePlace) and place in group.places
            ]
            own = torch.cat([part.reshape(-1, group.n_features) for part in codes]).ne(0).double().mean(0).cpu()
        found.append(torch.cat([own.double(), torch.ones(int(group.has_error), dtype=torch.float64)]))
    return torch.cat(found)


def _own_densities(group: WeightGroup) -> Float[Tensor, " feature"]:
    if group.features.examples is None:
        raise InputError(
            f"The features of {group.name!r} were saved without examples, so circuits of equal frequency cannot be drawn. "
            "Ask for n_random=0, or decompose again."
        )
    return densities_of(group.features, group.features.examples.rows(slice(0, _ROWS)))


def _minimality(subject: CircuitSubject, kept: Tensor, own: Tensor, gap: Float[Tensor, " prompt"]) -> float:
    """Share of the circuit's features that it misses."""
    whole, falls = own.mean(), []
    for node in (kept & ~subject.is_error).nonzero().flatten().tolist():
        less = kept.clone()
        less[node] = False
        falls.append(_ratio(whole - subject.values(subject.kept(less)).mean(), gap.mean()))
    return sum(fall >= 0.01 for fall in falls) / len(falls) if falls else 0.0


def _spread(gained: Tensor, gap: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """5th and 95th percentile of the ratio of means, over prompts drawn with replacement."""
    draws = torch.randint(len(gap), (_N_DRAWS, len(gap)), generator=generator)
    ratios = torch.tensor([_ratio(gained[draw].mean(), gap[draw].mean()) for draw in draws])
    low, high = ratios.quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


def _ratio(part: Tensor, whole: Tensor) -> float:
    """NaN where there is nothing to explain."""
    return float(part / whole) if abs(float(whole)) > 1e-12 else float("nan")
