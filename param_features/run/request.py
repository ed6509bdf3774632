"""What the user asks of a fit, and what is refused before any expensive step."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from param_features.errors import FeatureCountError, RankError, SettingError, nearest
from param_features.fit import FitSettings, HessianSettings, check_l0
from param_features.fit.formats import FORMATS
from param_features.gradients import HarvestSettings
from param_features.machine import spoken
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
        """Prints a line on the error stream, where progress is wanted."""
        return spoken(self.progress)

    def record(self, fit: MethodSettings) -> dict[str, Any]:
        """What decides a fit beside its method's own settings, for its record."""
        return {
            "method": self.method,
            "n_features": self.n_features,
            "rank": fit.rank,
            "format": fit.format,
            "l0": self.l0,
            "seed": self.seed,
        }


_FORM = ("rank", "format")
"""Settings of a fit that its record holds beside the method's others."""

_MEASURE = ("n_references", "n_examples")
"""Settings of a harvest that the record of a fit holds under `measure`."""


def _form_of(kind: type[FitSettings] | type[HessianSettings]) -> list[str]:
    """Those of rank and format that a method's settings have."""
    return [field.name for field in fields(kind) if field.name in _FORM]


def settings_record(harvest: HarvestSettings, fit: MethodSettings) -> dict[str, dict[str, Any]]:
    """Write settings as the record of a fit holds them; `settings_of_record` reads them."""
    taken = asdict(harvest)
    return {
        "harvest": {name: value for name, value in taken.items() if name not in _MEASURE},
        "fit": {name: value for name, value in asdict(fit).items() if name not in _FORM},
        "measure": {name: taken[name] for name in _MEASURE},
    }


def settings_of_record(record: Mapping[str, Any]) -> tuple[HarvestSettings, MethodSettings]:
    """Read the settings of a harvest and a fit from the fit's record."""
    kind = _METHODS[record["method"]]
    form = {name: record[name] for name in _form_of(kind)}
    return HarvestSettings(**record["harvest"], **record["measure"]), kind(**record["fit"], **form)


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


def read_fit(method: str, fit: MethodSettings | Mapping[str, Any] | None) -> MethodSettings | None:
    """Settings that may have been given as a mapping, of the method's class."""
    return _METHODS.get(method, FitSettings)(**fit) if isinstance(fit, Mapping) else fit


def leaves_batch_open(fit: MethodSettings | None) -> bool:
    """Tell whether a fit's batch may be made smaller for want of memory: `fit` gives no more than rank and format."""
    return fit is None or fit == replace(type(fit)(), **{name: getattr(fit, name) for name in _form_of(type(fit))})


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
