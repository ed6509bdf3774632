"""Whether a fit had enough steps."""

from collections.abc import Sequence
from statistics import fmean

_AT = ((0.09, 0.125), (0.18, 0.25), (0.36, 0.5))
"""Up to an eighth, a quarter and a half of the steps: each window is the one before, doubled."""

_LEAST = 64


def expected_fall(history: Sequence[float]) -> float | None:
    """By what share the error would fall with twice the steps; None of a history of fewer than 64 parts.

    From an eighth of the steps to a quarter it fell by f₁, from there to a half by f₂; each further doubling is expected to
    bring f₂/f₁ of the one before (all of it where that is above 1), and the doubling from all steps to twice as many is the
    second one: f₂ (f₂/f₁)², here as a share of the error at half of the steps. The second half of the steps is left out: the
    learning rate falls to zero over it, which lowers the error of any fit, finished or not.

    Args:
        history: Mean error of each part of the steps, the parts of one size.

    Returns:
        A share of the error; 0 where it did not fall.
    """
    n = len(history)
    if n < _LEAST:
        return None
    first, second, third = (fmean(history[int(n * a) : max(int(n * a) + 1, int(n * b))]) for a, b in _AT)
    before, last = first - second, second - third
    if last <= 0:
        return 0.0
    ratio = min(1.0, last / before) if before > 0 else 1.0
    return last * ratio**2 / max(third, 1e-12)
