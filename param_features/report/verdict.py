"""What the page says of a fit beside its controls: by the rule of every verdict, on held-out samples and along l0."""

from typing import Any

from param_features.fitted import Metrics
from param_features.measure import L0Curve
from param_features.sharing import verdict_sentences

_SHORT = {
    "control_pca": "principal directions",
    "control_random": "random directions",
    "control_svd_w": "singular directions of W",
}


def verdict_lines(metrics: Metrics, curve: L0Curve | None) -> dict[str, Any]:
    """Sentences, and whether they are a warning.

    Args:
        metrics: Of the fit, at its own l0.
        curve: The same on the page's rows, at several l0; components have none.
    """
    sentences = verdict_sentences(metrics)
    for side, verb in (("worse", "are better than"), ("alike", "are as good as")):
        for name in metrics.standings:
            l0s = [l0 for l0, standing in ({} if curve is None else curve.standings(name)).items() if standing.side == side]
            if l0s:
                listed = ", ".join(f"{l0:g}" for l0 in l0s)
                sentences.append(f"Along the curve {_SHORT.get(name, name)} {verb} the fit at l0 {listed}.")
    is_warning = bool(metrics.matched_by) or not metrics.standings
    return {"sentences": sentences, "is_warning": is_warning}
