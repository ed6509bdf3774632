"""What the user asks of a fit, and what is refused before any expensive step."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from param_features.errors import FeatureCountError, RankError, SettingError, nearest
from param_features.fit import FitSettings, HessianSettings, check_l0
from param_features.fit.components import PRESETS, ComponentSettings
from param_features.fit.formats import FORMATS
from param_features.machine import spoken
from param_features.params import ParamSubset

METHODS = {"l3d": FitSettings, "hessian": HessianSettings, "components": ComponentSettings}
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


@dataclass(frozen=True)
class ComponentRequest:
    """What the user asks of a fit of components, beside its settings.

    Attributes:
        counts: Components of each matrix, by name.
        seed: Of every random choice.
        progress: Whether progress is shown.
    """

    counts: Mapping[str, int]
    seed: int
    progress: bool

    @property
    def n_features(self) -> int:
        """How many components there are."""
        return sum(self.counts.values())

    @property
    def say(self) -> Callable[[str], None]:
        """Prints a line on the error stream, where progress is wanted."""
        return spoken(self.progress)

    def record(self) -> dict[str, Any]:
        """What decides a fit beside its settings, for its record."""
        return {
            "method": "components",
            "n_features": self.n_features,
            "n_components": dict(self.counts),
            "seed": self.seed,
        }


FORM = ("rank", "format")
"""Settings of a fit that its record holds beside the method's others."""


def form_of(kind: type) -> list[str]:
    """Those of rank and format that a method's settings have."""
    return [field.name for field in fields(kind) if field.name in FORM]


_USUAL_N = 100


def one_count(n_features: int | Mapping[str, int] | None, method: str) -> int:
    """The number of features of a method that finds them in all parameters together; 100 where none is given.

    Raises:
        FeatureCountError: It was given matrix by matrix.
    """
    if isinstance(n_features, Mapping):
        raise FeatureCountError(
            f"n_features is a dict, but features of method={method!r} lie in all parameters together. Give one number, or "
            "method='components'."
        )
    return _USUAL_N if n_features is None else n_features


def usual_l0(n_features: int) -> float:
    """The number of features kept per sample where none is given: a twentieth of them, at least 1."""
    return max(1.0, n_features / 20)


def method_settings(
    method: str, fit: MethodSettings | None, *, steps: int | None, rank: int | None = None
) -> MethodSettings:
    """The settings of a fit to gradients: those given, or else the method's own, with what overrides them.

    Args:
        method: Name of the method.
        fit: Settings that were given.
        steps: Overrides `fit.steps`.
        rank: Overrides `fit.rank`.

    Raises:
        SettingError: The method is unknown, or `fit` is of another method.
    """
    kind = METHODS[checked_method(method)]
    fit = kind() if fit is None else fit
    if not isinstance(fit, kind):
        raise SettingError(
            f"fit is a {type(fit).__name__}, but method={method!r} takes pf.{kind.__name__}(…). Give that, or another "
            "method."
        )
    fit = fit if steps is None else replace(fit, steps=steps)
    return fit if rank is None else replace(fit, rank=rank)


def checked_method(method: str) -> str:
    """The method's name.

    Raises:
        SettingError: There is no such method.
    """
    if method not in METHODS:
        raise SettingError(
            f"method={method!r} is unknown. Accepted: {', '.join(map(repr, METHODS))}; nearest: {nearest(method, METHODS)}."
        )
    return method


def read_fit(method: str, fit: Any) -> MethodSettings | None:
    """Settings of a fit to gradients, which may have been given as a mapping, of the method's class.

    Raises:
        SettingError: They are a name, and only `method="components"` has presets.
    """
    if isinstance(fit, str):
        raise SettingError(f"fit={fit!r} is a name, and only method='components' has presets. Give settings.")
    return METHODS.get(method, FitSettings)(**fit) if isinstance(fit, Mapping) else fit


def component_settings(
    fit: ComponentSettings | MethodSettings | Mapping[str, Any] | str | None, *, steps: int | None
) -> ComponentSettings:
    """The settings of a fit of components, from what was given as `fit=`.

    Raises:
        SettingError: It is of another method, or there is no preset of that name.
    """
    if isinstance(fit, str):
        fit = ComponentSettings.preset(fit)
    elif fit is None or isinstance(fit, Mapping):
        fit = ComponentSettings(**(fit or {}))
    if not isinstance(fit, ComponentSettings):
        raise SettingError(
            f"fit is a {type(fit).__name__}, but method='components' takes pf.ComponentSettings(…), or the name of a "
            f"preset: {', '.join(map(repr, PRESETS))}. Give that, or another method."
        )
    return fit if steps is None else replace(fit, steps=steps)


def leaves_batch_open(fit: MethodSettings | None) -> bool:
    """Tell whether a fit's batch may be made smaller for want of memory: `fit` gives no more than rank and format."""
    return fit is None or fit == replace(type(fit)(), **{name: getattr(fit, name) for name in form_of(type(fit))})


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
