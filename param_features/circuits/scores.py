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
from param_features.fitted import Fitted
from param_features.measure import densities_of, random_like

_N_DRAWS, _NEAREST, _ROWS, _ROUNDS = 1000, 10, 16, 10


@torch.no_grad()
def score(
    subject: CircuitSubject,
    is_kept: Bool[Tensor, " node"],
    *,
    n_random: int,
    generator: torch.Generator,
    randomised: CircuitSubject,
) -> dict[str, float]:
    """Measure every score of a circuit; they are returned by name.

    `faithfulness` is (m(C) − m(∅)) / (m(M) − m(∅)): C the circuit, M the model, ∅ the model without any feature; errors stay
    in all three. `completeness` is the same for the model without the circuit's features: near 0 where nothing else does the
    circuit's work. `minimality` is the share of its features without which faithfulness falls by a hundredth of it or more.
    `…_random` is the mean of random circuits with as many features, `…_matched` of such whose features lie in the same
    groups and are as frequent, `…_best` the best of either. `faithfulness_low` and `_high` are the 5th and 95th percentile
    over prompts drawn with replacement. `gap` is m(M) − m(∅), `gap_spread` its standard error over prompts, and `gap_random`
    the same where as many random directions of the same rank are taken away: where the two are alike, the ratios say
    nothing. `faithfulness_directions` is that of as many random directions, grown from all of these as circuits are, in
    their own gap. `faithfulness_no_errors` leaves the errors out of C and ∅. Ratios of a gap of nothing are left out.
    Cost: two forward passes for each random circuit, one for each of the circuit's features, and growing a circuit.

    Args:
        subject: Whose nodes.
        is_kept: The circuit's nodes, errors among them.
        n_random: Random circuits of each kind.
        generator: Of every draw.
        randomised: The subject with random directions in the features' stead.

    Source: Marks et al. (2403.19647), section 4; Wang et al. (2211.00593) for minimality, here against the whole circuit.
    """
    errors, model = subject.is_error, subject.values()
    empty = subject.values(subject.amounts_keeping(errors))
    with_circuit = subject.values(subject.amounts_keeping(is_kept))
    without_circuit = subject.values(subject.amounts_removing(is_kept & ~errors))

    def share(values: Tensor, lowest: Tensor = empty) -> float:
        return _ratio(values.mean() - lowest.mean(), model.mean() - lowest.mean())

    with_nothing = subject.values(subject.amounts_keeping(torch.zeros_like(is_kept)))
    scores = {
        "n_features": float((is_kept & ~errors).sum()),
        "n_features_all": float((~errors).sum()),
        "metric_model": float(model.mean()),
        "metric_circuit": float(with_circuit.mean()),
        "metric_empty": float(empty.mean()),
        "gap": float(model.mean() - empty.mean()),
        "faithfulness": share(with_circuit),
        "completeness": share(without_circuit),
        "faithfulness_no_errors": share(subject.values(subject.amounts_keeping(is_kept & ~errors)), with_nothing),
        "minimality": _minimality(subject, is_kept, with_circuit, model - empty),
    }
    low, high = _spread(with_circuit - empty, model - empty, generator)
    scores |= {"faithfulness_low": low, "faithfulness_high": high}
    if len(model) > 1:
        scores["gap_spread"] = float((model - empty).std()) / len(model) ** 0.5
    scores |= _scores_of_directions(randomised, model, int(scores["n_features"]))
    for name, circuits in _rivals(subject, is_kept, n_random, generator).items():
        faithful = [share(subject.values(subject.amounts_keeping(nodes))) for nodes in circuits]
        complete = [share(subject.values(subject.amounts_removing(nodes & ~errors))) for nodes in circuits]
        scores |= {
            f"faithfulness_{name}": sum(faithful) / len(faithful),
            f"faithfulness_{name}_best": max(faithful),
            f"completeness_{name}": sum(complete) / len(complete),
        }
    return {name: value for name, value in scores.items() if isfinite(value)}


def _scores_of_directions(randomised: CircuitSubject, model: Float[Tensor, " prompt"], n_nodes: int) -> dict[str, float]:
    """Score a circuit of as many random directions, grown as circuits of features are, in the random directions' gap."""
    empty = randomised.values(randomised.amounts_keeping(randomised.is_error)).mean()
    scores = {"gap_random": float(model.mean() - empty)}
    if n_nodes < 1:
        return scores
    grown = randomised.values(randomised.amounts_keeping(by_growth(randomised, n_nodes, _ROUNDS))).mean()
    return scores | {"faithfulness_directions": _ratio(grown - empty, model.mean() - empty)}


def with_random_directions(subject: CircuitSubject, generator: torch.Generator) -> CircuitSubject:
    """Put random directions of the same rank in the place of every parameter feature; baselines are zero."""
    groups: list[Group] = []
    for group in subject.groups:
        if isinstance(group, WeightGroup):
            group = weight_group(_with_random(group.features, generator), group.name)
        groups.append(group)
    return replace(subject, groups=tuple(groups))


def _with_random(features: Fitted, generator: torch.Generator) -> Fitted:
    if features.dictionary.sizes is not None:
        return replace(features, dictionary=features.dictionary.with_random(generator), _example_readings=[])
    return features.with_directions(random_like(features.v_out, generator), features.v_in)


def _rivals(
    subject: CircuitSubject, is_kept: Bool[Tensor, " node"], n: int, generator: torch.Generator
) -> dict[str, list[Bool[Tensor, " node"]]]:
    """Draw random circuits of as many features: of any, and of as frequent ones in the same groups."""
    if n < 1:
        return {}
    features, n_kept = (~subject.is_error).nonzero().flatten(), int((is_kept & ~subject.is_error).sum())
    rivals: dict[str, list[Tensor]] = {"random": [], "matched": []}
    frequency = frequencies(subject)
    for _ in range(n):
        drawn = features[torch.randperm(len(features), generator=generator)[:n_kept]]
        rivals["random"].append(_marked(subject, drawn))
        rivals["matched"].append(_marked(subject, _matched(subject, is_kept, frequency, generator)))
    return rivals


def _marked(subject: CircuitSubject, nodes: Tensor) -> Bool[Tensor, " node"]:
    marks = subject.is_error.clone()
    marks[nodes] = True
    return marks


def _matched(
    subject: CircuitSubject, is_kept: Bool[Tensor, " node"], frequency: Float[Tensor, " node"], generator: torch.Generator
) -> Tensor:
    """Draw for each of the circuit's features another of its group that is about as frequent; none twice where possible."""
    group_of, free, chosen = subject.group_of, ~is_kept, []
    for node in (is_kept & ~subject.is_error).nonzero().flatten().tolist():
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
    """Measure the share of samples that keep each feature: 16 examples of its set, or for SAEs the prompts.

    Cost: activations of 16 sequences for each set.
    """
    by_group, calls = [], subject.sources(subject.inputs)
    for group in subject.groups:
        if isinstance(group, WeightGroup):
            of_features = _densities(group)
        else:
            codes = [
                call.source.codes
                for (place, _), call in calls.items()
                if isinstance(place, SaePlace) and place in group.places
            ]
            of_features = torch.cat([part.reshape(-1, group.n_features) for part in codes]).ne(0).double().mean(0).cpu()
        by_group.append(torch.cat([of_features.double(), torch.ones(int(group.has_error), dtype=torch.float64)]))
    return torch.cat(by_group)


def _densities(group: WeightGroup) -> Float[Tensor, " feature"]:
    if group.features.examples is None:
        raise InputError(
            f"The features of {group.name!r} were saved without examples, so circuits of equal frequency cannot be drawn. "
            "Ask for n_random=0, or decompose again."
        )
    return densities_of(group.features, group.features.examples.rows(slice(0, _ROWS)))


def _minimality(subject: CircuitSubject, is_kept: Tensor, with_circuit: Tensor, gap: Float[Tensor, " prompt"]) -> float:
    """Measure the share of the circuit's features that it misses when they are taken away."""
    whole, falls = with_circuit.mean(), []
    for node in (is_kept & ~subject.is_error).nonzero().flatten().tolist():
        less = is_kept.clone()
        less[node] = False
        falls.append(_ratio(whole - subject.values(subject.amounts_keeping(less)).mean(), gap.mean()))
    return sum(fall >= 0.01 for fall in falls) / len(falls) if falls else 0.0


def _spread(gained: Tensor, gap: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """Compute the 5th and 95th percentile of the ratio of means, over prompts drawn with replacement."""
    draws = torch.randint(len(gap), (_N_DRAWS, len(gap)), generator=generator)
    ratios = torch.tensor([_ratio(gained[draw].mean(), gap[draw].mean()) for draw in draws])
    low, high = ratios.quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


def _ratio(part: Tensor, whole: Tensor) -> float:
    """Divide a part by the whole; NaN where there is nothing to explain."""
    return float(part / whole) if abs(float(whole)) > 1e-12 else float("nan")
