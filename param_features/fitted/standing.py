"""The one rule for what counts as better than a control: every verdict of the library asks it."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

LEAST_GAIN = 0.05
"""Of the larger number: many learned directions rebuild even pure noise a little better than random ones do."""

N_SPREADS = 2.0


@dataclass(frozen=True)
class Standing:
    """How a number lies beside its control.

    Attributes:
        gain: By what share it is the better of the two; negative where the control is.
        spread: Standard error of the gain; 0 where none was measured.
        least: The gain that is needed, however small the spread.
    """

    gain: float
    spread: float = 0.0
    least: float = LEAST_GAIN

    @property
    def side(self) -> Literal["better", "alike", "worse"]:
        """`better` or `worse` where the gain is above `least` and two standard errors; NaN is `alike`."""
        bar = max(self.least, N_SPREADS * self.spread)
        return "better" if self.gain > bar else "worse" if self.gain < -bar else "alike"

    @property
    def is_better(self) -> bool:
        """Whether the number is better than the control."""
        return self.side == "better"

    @property
    def share(self) -> str:
        """The gain's size in words, such as `15% ± 1%`, or `12 times` from ten on."""
        if abs(self.gain) >= 10:
            return f"{abs(self.gain):,.0f} times"
        if not self.spread:
            return f"{abs(self.gain):.0%}"
        return f"{abs(self.gain):.0%} ± {self.spread:.{0 if self.spread >= 0.01 else 1}%}"


def lower(value: float, control: float, *, spread: float = 0.0, least: float = LEAST_GAIN, floor: float = 1e-12) -> Standing:
    """How an error lies beside a control's: the gain is the share of the control's error by which it is lower.

    Args:
        value: Of which less is better.
        control: What must not do as well.
        spread: Standard error of the gain.
        least: The gain that is needed.
        floor: The gain is a share of this where the control's error is smaller: below it errors are noise.
    """
    scale = max(control, floor)
    return Standing((control - value) / scale, spread * max(control, 0) / scale if control < floor else spread, least)


def higher(value: float, control: float, *, spread: float = 0.0, least: float = LEAST_GAIN) -> Standing:
    """How a score lies beside a control's: the gain is their distance as a share of the larger size.

    Args:
        value: Of which more is better.
        control: What must not do as well.
        spread: Standard error of the gain.
        least: The gain that is needed.
    """
    return Standing((value - control) / max(abs(value), abs(control), 1e-12), spread, least)


def spread_of_ratio(errors: Float[Tensor, " sample"], controls: Float[Tensor, " sample"]) -> float:
    """Standard error of 1 − Σ errors / Σ controls over samples, taken as independent; 0 for fewer than two.

    Each sample's error stands beside the control's on the same sample, so what makes a sample hard for both cancels.

    Source: Cochran, Sampling Techniques, 1977, section 6.3: the variance of a ratio estimator.
    """
    if len(errors) < 2:
        return 0.0
    errors, controls = errors.double(), controls.double()
    whole = float(controls.sum().clamp(min=1e-30))
    rest = errors - float(errors.sum()) / whole * controls
    n = len(errors)
    return float((rest.square().sum() * n / (n - 1)).sqrt()) / whole
