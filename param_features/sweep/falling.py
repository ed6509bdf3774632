"""Whether a fit's error was still falling."""

import math
from collections.abc import Sequence

import torch

_FROM, _TO = 1 / 8, 1 / 2
_LEAST = 8


def fall_per_doubling(history: Sequence[float]) -> float:
    """By how much the batches' error fell for each doubling of the steps, as a share of the error then; NaN if unknown.

    Read off the steps from an eighth to a half, in which the learning rate is constant: later the rate falls to zero, which
    lowers the error of any fit, finished or not. The slope is that of a straight line through the errors over log₂(step), so
    that one batch's luck does not decide.

    Args:
        history: Mean error of each part of the steps, the parts of one size.
    """
    n = len(history)
    first, last = math.ceil(n * _FROM), math.floor(n * _TO)
    if last - first < _LEAST:
        return math.nan
    errors = torch.tensor(history[first:last], dtype=torch.float64)
    doublings = (torch.arange(first, last, dtype=torch.float64) + 0.5).log2()
    centred = doublings - doublings.mean()
    slope = float((centred * errors).sum() / centred.square().sum())
    at_end = float(errors.mean()) + slope * float(doublings[-1] - doublings.mean())
    return -slope / max(at_end, 1e-12)
