"""Where a curve over training changes phase: piecewise lines by the library ruptures."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import MissingExtraError, SettingError
from param_features.machine import public

FEWEST = 6
"""Checkpoints of the shortest curve that can change: two lines of three points each."""
PENALTY = 6.0
"""Times log n for each change: twice what the Bayesian information criterion takes for a slope, a height and a place."""
_SHARE_OF_RANGE, _LEAST_NOISE = 0.05, 0.02
_NOTHING = 1e-3
"""Of the largest value: what is far below counts as nothing."""
_MEDIAN_OF_NORMAL = 0.6745
"""Median of the size of a standard normal number."""


def log_curve(curve: Float[Tensor, "*curve"]) -> Float[Tensor, "*curve"]:
    """Natural log of a curve that is never negative, a thousandth of its largest value added, so that zeros count."""
    curve = curve.detach().double()
    most = torch.nan_to_num(curve).amax(0)
    return (curve + torch.where(most > 0, _NOTHING * most, 1.0)).log()


def noise_of(values: Float[Tensor, " checkpoint"]) -> float:
    """How far neighbours lie apart as a rule, as a standard deviation; 0.02 and 5 % of the range at least.

    The median of neighbours' distances, so that a few jumps do not raise it. The least values keep smooth curves, which have
    no noise, from changing all the time: a change must be worth seeing in the picture of the whole.
    """
    distances = values.diff().abs()
    return max(
        float(distances.median()) / _MEDIAN_OF_NORMAL / 2**0.5,
        _SHARE_OF_RANGE * float(values.max() - values.min()),
        _LEAST_NOISE,
    )


@public
def change_points(curve: Float[Tensor, " checkpoint"], penalty: float = PENALTY) -> list[int]:
    """Numbers of the checkpoints at which a new phase begins, rising.

    The curve's log is described by lines, each with a height and a slope of its own: as many as make the squared residuals
    in units of the noise, plus `penalty` · log n for each change, the least (PELT, which finds it exactly). A steady rise
    is one line and so one phase; a jump, and a bend, begin another. Every phase has three checkpoints or more.

    Cost: 1 ms for 10 checkpoints, 30 ms for 100.

    Args:
        curve: One value a checkpoint, never negative, evenly spaced as far as the rule knows; leading NaNs are left out.
        penalty: Larger finds fewer. With 6, curves of pure noise show a change in 7 % of cases for 8 or 12 checkpoints,
            2.5 % for 20 and 1 % for 40 (`benchmarks/change_points.py`).

    Returns:
        Empty for fewer than six values.

    Raises:
        SettingError: `penalty` is not positive.
        MissingExtraError: ruptures cannot be imported.

    Source: Killick et al. 2012 (1101.1438) for PELT; Truong et al. 2020 for ruptures and its cost "linear".
    """
    if not penalty > 0:
        raise SettingError(f"penalty={penalty} must be positive; {PENALTY:g} is usual, and larger finds fewer changes.")
    try:
        import ruptures
    except ImportError as error:
        raise MissingExtraError(
            'Change points need ruptures, which cannot be imported. pip install "param_features[devinterp]" brings it.'
        ) from error
    is_known = torch.isfinite(curve)
    n, first = int(is_known.sum()), int(is_known.long().argmax())
    if n < FEWEST:
        return []
    values = log_curve(curve[is_known])
    signal = torch.stack([values / noise_of(values), torch.ones(n), torch.arange(n)], 1).double()
    model = ruptures.Pelt(model="linear", min_size=FEWEST // 2, jump=1).fit(signal.numpy())
    return [first + place for place in model.predict(pen=penalty * float(torch.tensor(n).log()))[:-1]]
