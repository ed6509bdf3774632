"""Fits of one model with several seeds: their errors beside controls, and how far they agree."""

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from benchmarks.bench.table import Row
from param_features.features import ParamFeatures, decompose
from param_features.measure import match
from param_features.params import ParamSpec

_REPORTED = ("reconstruction_error", "training_error", "control_pca", "control_random", "density", "dead", "l0_at_threshold")


def stability(model: Any, params: ParamSpec, tokens: Any, *, seeds: Sequence[int] = (0, 1, 2), **call: Any) -> list[Row]:
    """Decompose with each seed and match every pair of results.

    Seeds draw other samples, split the sequences otherwise and start elsewhere. Cost: that of `pf.decompose`, once a seed.

    Args:
        model: As for `pf.decompose`.
        params: As for `pf.decompose`.
        tokens: As for `pf.decompose`.
        seeds: Two or more.
        call: Further arguments of `pf.decompose`.

    Returns:
        A row of one value per seed for the metrics, `below_pca` (by what share of it the error lies below that control) and
        CPU seconds; a row of one value per pair of seeds for `cosine` (mean |cosine| matched one to one), its control with
        random directions, and the shares of pairs above 0.9 and 0.8.
    """
    name = f"{params}, {call.get('n_features', 100)} features"
    fits: list[ParamFeatures] = []
    seconds = []
    for seed in seeds:
        start = time.process_time()
        fits.append(decompose(model, params, tokens, seed=seed, **call))
        seconds.append(time.process_time() - start)
    metrics = [fit.metrics for fit in fits]
    by_seed = {number: tuple(values[number] for values in metrics) for number in _REPORTED}
    below = tuple(1 - values["reconstruction_error"] / values["control_pca"] for values in metrics)
    pairs = [match(first, second) for first, second in combinations(fits, 2)]
    by_pair = {
        "cosine": tuple(pair.mean_cosine for pair in pairs),
        "random cosine": tuple(pair.control_cosine for pair in pairs),
        "above 0.9": tuple(pair.share_above(0.9) for pair in pairs),
        "above 0.8": tuple(pair.share_above(0.8) for pair in pairs),
    }
    numbers = {**by_seed, "below_pca": below, **by_pair, "seconds": tuple(seconds)}
    return [Row(name, number, values) for number, values in numbers.items()]
