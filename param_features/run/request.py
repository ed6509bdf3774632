"""What the user asks of a fit, and what is refused before any expensive step."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from param_features.errors import FeatureCountError, RankError, SettingError, nearest
from param_features.fit import FitSettings, HessianSettings, check_l0
from param_features.fit.formats import FORMATS
from param_features.machine import notices
from param_features.params import ParamSubset

_METHODS = {"l3d": FitSettings, "hessian": HessianSettings}
"""Each method's settings."""

MethodSettings = FitSettings | HessianSettings


@dataclass(frozen=True)
class Request:
    """What the user asks of a fit, beside its method's settings."""

    method: str
    n_features: int
    l0: float
    seed: int
    progress: bool

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a notice on the error stream, where progress is wanted."""
        return notices(self.progress)

    def record(self, fit: MethodSettings) -> dict[str, Any]:
        """What decides a fit, for its record."""
        return {
            "method": self.method,
            "n_features": self.n_features,
            "rank": fit.rank,
            "format": fit.format,
            "l0": self.l0,
            "seed": self.seed,
        }


def usual_l0(n_features: int) -> float:
    """The number of features kept per sample where none is given: a twentieth of them, at least 1."""
    return max(1.0, n_features / 20)


def method_settings(
    method: str, fit: MethodSettings | None, *, steps: int | None, rank: int | None = None
) -> MethodSettings:
    """The settings of a fit: those given, or else the method's own, with what overrides them.

    Args:
        method: Name of the method.
        fit: Settings that were given.
        steps: Overrides `fit.steps`.
        rank: Overrides `fit.rank`.

    Raises:
        SettingError: The method is unknown, or `fit` is of another method.
    """
    if method not in _METHODS:
        raise SettingError(
            f"method={method!r} is unknown. Accepted: {', '.join(map(repr, _METHODS))}; nearest: "
            f"{nearest(method, _METHODS)}."
        )
    kind = _METHODS[method]
    fit = kind() if fit is None else fit
    if not isinstance(fit, kind):
        raise SettingError(
            f"fit is a {type(fit).__name__}, but method={method!r} takes pf.{kind.__name__}(…). Give that, or another "
            "method."
        )
    fit = fit if steps is None else replace(fit, steps=steps)
    return fit if rank is None else replace(fit, rank=rank)


def check_request(request: Request, fit: MethodSettings, subset: ParamSubset) -> None:
    """Refuse settings that are out of range for the chosen parameters.

    Raises:
        FeatureCountError: `n_features` or `l0` is out of range.
        RankError: `rank` exceeds what the format can use.
    """
    if request.n_features < 1:
        raise FeatureCountError(f"n_features={request.n_features} must be at least 1; a few hundred is usual.")
    check_l0(request.l0, request.n_features)
    largest = max(FORMATS[fit.format].largest_rank(view.modes) for view in subset.views)
    if not 1 <= fit.rank <= largest:
        shapes = ", ".join(f"{view.name} {view.modes}" for view in subset.views[:3])
        raise RankError(
            f"rank={fit.rank} lies outside 1 to {largest}, the largest that a feature can have in format="
            f"{fit.format!r} of the chosen matrices ({shapes})."
        )
