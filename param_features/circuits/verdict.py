"""Whether a circuit explains its metric: what its scores say beside their controls, by the rule of every verdict."""

from collections.abc import Iterator, Mapping

from param_features.circuits.graph import CircuitGraph
from param_features.circuits.metric import NextTokenLoss
from param_features.fitted import higher

_SIGMAS = 3.29
"""From the 5th to the 95th percentile, in standard deviations."""


def circuit_verdict(circuit: CircuitGraph) -> str:
    """One sentence or more: that the circuit explains its metric, or why its scores do not show it.

    It does where three numbers are better than their controls', by 5 % and two standard errors: how far the metric falls
    without any of the features (`gap`, beside random directions), how much of it the circuit brings back (beside a circuit
    of random directions), and its share of the gap, `faithfulness` (beside the best of random and matched circuits).
    """
    scores = circuit.scores
    if "gap" not in scores:
        return "Whether they explain it was not measured."
    has_directions = any(node.kind == "parameter" for node in circuit.nodes)
    sign = -1 if circuit.metric == NextTokenLoss().name else 1
    reasons = list(_reasons(scores, sign, has_directions=has_directions))
    if reasons:
        return f"Not shown to explain it: {'; '.join(reasons)}."
    return f"They explain it: they bring back {scores['faithfulness']:.0%} of what it loses without all features."


def _reasons(scores: Mapping[str, float], sign: int, *, has_directions: bool) -> Iterator[str]:
    gap, faithfulness = sign * scores["gap"], scores.get("faithfulness", float("nan"))
    random = abs(scores.get("gap_random", 0.0)) if has_directions else 0.0
    of_gap = higher(gap, random, spread=scores.get("gap_spread", 0.0) / max(abs(gap), random, 1e-12))
    if not of_gap.is_better:
        beside = f" (random directions {scores['gap_random']:.3g})" if has_directions and "gap_random" in scores else ""
        way = "does not lose enough without all features" if gap > 0 else "loses nothing without all features"
        spread = f" ± {scores['gap_spread']:.2g}" if "gap_spread" in scores else ""
        yield f"the metric {way}, gap {scores['gap']:.3g}{spread}{beside}"
    if "faithfulness_low" in scores and "faithfulness_high" in scores:
        error = (scores["faithfulness_high"] - scores["faithfulness_low"]) / _SIGMAS
    else:
        error = 0.0
    if has_directions and "faithfulness_directions" in scores:
        back, by_random = gap * faithfulness, random * scores["faithfulness_directions"]
        if not higher(back, by_random, spread=gap * error / max(abs(back), abs(by_random), 1e-12)).is_better:
            yield f"it brings back {back:.3g}, and a circuit of random directions {by_random:.3g}"
    rivals = [scores[name] for name in ("faithfulness_random_best", "faithfulness_matched_best") if name in scores]
    best = max(rivals, default=0.0)
    if not higher(faithfulness, best, spread=error / max(abs(faithfulness), abs(best), 1e-12)).is_better:
        yield f"its faithfulness is {faithfulness:.3g}, and that of the best random circuit {best:.3g}"
