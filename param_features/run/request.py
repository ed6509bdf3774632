"""What the user asked of a decomposition, and what is refused before any expensive step."""

import sys
from dataclasses import dataclass

from tqdm import tqdm

from param_features.errors import FeatureCountError, RankError, SettingError, nearest
from param_features.fit import FitSettings, HessianSettings, check_l0
from param_features.fit.formats import FORMATS
from param_features.params import ParamSubset

_METHODS = {"l3d": FitSettings, "hessian": HessianSettings}
"""Each method's settings."""


@dataclass(frozen=True)
class Request:
    """What the user asked of the fit."""

    method: str
    n_features: int
    rank: int
    format: str
    l0: float
    seed: int
    progress: bool

    def say(self, message: str) -> None:
        """A notice on the error stream, where progress is wanted."""
        if self.progress:
            tqdm.write(message, file=sys.stderr)


def default_fit(request: Request) -> FitSettings | HessianSettings:
    """The method's own settings.

    Raises:
        SettingError: The method is unknown.
    """
    if request.method not in _METHODS:
        raise SettingError(
            f"method={request.method!r} is unknown. Accepted: {', '.join(map(repr, _METHODS))}; nearest: "
            f"{nearest(request.method, _METHODS)}."
        )
    return _METHODS[request.method]()


def _check_method(request: Request, fit: FitSettings | HessianSettings) -> None:
    wanted = type(default_fit(request))
    if not isinstance(fit, wanted):
        raise SettingError(
            f"fit is a {type(fit).__name__}, but method={request.method!r} takes pf.{wanted.__name__}(…). Give that, or "
            "another method."
        )
    if request.method == "hessian" and request.format != "matrix":
        raise SettingError(
            f"format={request.format!r} with method='hessian'. Accepted: 'matrix'; the other formats are for method='l3d'."
        )


def check_request(request: Request, fit: FitSettings | HessianSettings, subset: ParamSubset) -> None:
    """Refuse settings that are out of range or do not go together.

    Raises:
        SettingError: The method or format is unknown, or `fit` is of another method.
        FeatureCountError: `n_features` or `l0` is out of range.
        RankError: `rank` exceeds what the format can use.
    """
    _check_method(request, fit)
    if request.n_features < 1:
        raise FeatureCountError(f"n_features={request.n_features} must be at least 1; a few hundred is usual.")
    check_l0(request.l0, request.n_features)
    if request.format not in FORMATS:
        raise SettingError(
            f"format={request.format!r} is unknown. Accepted: {', '.join(map(repr, FORMATS))}; nearest: "
            f"{nearest(request.format, FORMATS)}."
        )
    largest = max(FORMATS[request.format].largest_rank(view.modes) for view in subset.views)
    if not 1 <= request.rank <= largest:
        shapes = ", ".join(f"{view.name} {view.modes}" for view in subset.views[:3])
        raise RankError(
            f"rank={request.rank} lies outside 1 to {largest}, the largest that a feature can have in format="
            f"{request.format!r} of the chosen matrices ({shapes})."
        )
