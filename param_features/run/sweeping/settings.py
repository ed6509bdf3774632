"""Which fits a sweep makes, and by which rule it judges them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from param_features.errors import FeatureCountError, SettingError
from param_features.fitted import LEAST_GAIN
from param_features.machine import public


@public
@dataclass(frozen=True)
class SweepSettings:
    """When a sweep recommends a setting, and what it flags. Shares are of 1.

    Attributes:
        least_gain: A fit beats a control when its error is lower by this share of the control's, and by two standard errors.
            Above zero, since many learned directions rebuild even pure noise a little better than random ones do.
        within: A smaller setting is as good as the best one where its gain is lower by no more than this share.
        top_share: Collapsed: one feature has so much of the coordinates kept, by number or by squared size, and four times
            an even share.
        dead_share: Collapsed: so many features are kept by no held-out sample.
        still_falling: Under-trained: with twice the steps the error is expected to be lower by this share, and by 0.002.
        overfit: Overfit: the error on training samples lies this share below that on held-out ones.
        stochastic_within: An importance weight is not too large where D under drawn masks is at most this share of D with
            nothing of the matrices left.
        unmasked_within: The same of D with all components on and Δ off.
    """

    least_gain: float = LEAST_GAIN
    within: float = 0.1
    top_share: float = 0.5
    dead_share: float = 0.5
    still_falling: float = 0.012
    overfit: float = 0.2
    stochastic_within: float = 0.05
    unmasked_within: float = 0.005

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        for name in ("least_gain", "within", "still_falling", "overfit", "stochastic_within", "unmasked_within"):
            if not 0 <= getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must lie in [0, 1), such as 0.1.")
        for name in ("top_share", "dead_share"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingError(f"{name}={getattr(self, name)} must lie in (0, 1], such as 0.5.")


class Setting(NamedTuple):
    """What one fit is made with.

    Attributes:
        n_features: Number of features.
        rank: Factors per feature and parameter.
        l0: Mean number of features kept per sample.
        seed: Of the fit.
    """

    n_features: int
    rank: int
    l0: float
    seed: int

    def __str__(self) -> str:
        """As messages call it."""
        return f"n_features={self.n_features}, rank={self.rank}, l0={self.l0:g}, seed={self.seed}"

    @property
    def folder(self) -> str:
        """Name of the folder that the fit is kept in."""
        return f"n_features-{self.n_features}-rank-{self.rank}-l0-{self.l0:g}-seed-{self.seed}"


def grid(
    n_features: int | Sequence[int], rank: int | Sequence[int], l0: float | Sequence[float], seeds: int | Sequence[int]
) -> list[Setting]:
    """Every combination, the smallest first; those whose l0 exceeds their number of features are left out.

    Raises:
        SettingError: A list is empty.
        FeatureCountError: A number is below 1, an l0 is not positive, or none is left.
    """
    axes = {"n_features": listed(n_features), "rank": listed(rank), "l0": listed(l0), "seeds": listed(seeds)}
    for name, values in axes.items():
        if not values:
            raise SettingError(f"{name}=[] is empty. Give one number or several, such as {name}=[{_USUAL[name]}].")
    for name in ("n_features", "rank", "l0"):
        if min(axes[name]) <= 0:
            raise FeatureCountError(f"{name} holds {min(axes[name]):g}. Give positive numbers, such as [{_USUAL[name]}].")
    every = [Setting(int(n), int(r), float(k), int(seed)) for n, r, k, seed in product(*axes.values())]
    found = [setting for setting in every if setting.l0 <= setting.n_features]
    if not found:
        raise FeatureCountError(
            f"The least l0={min(axes['l0']):g} exceeds the largest n_features={max(axes['n_features'])}. No sample can keep "
            "more features than there are: give a smaller l0."
        )
    return found


_USUAL = {"n_features": "50, 100, 200", "rank": "1, 2", "l0": "2, 5, 10", "seeds": "0, 1"}


def listed(values: float | Sequence[float]) -> list[float]:
    """One number or several, each once, the smallest first."""
    numbers = [values] if isinstance(values, int | float) else list(values)
    return sorted(set(numbers))
