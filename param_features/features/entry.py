"""The calls that give features: those of the rooms below, whose results get the methods of `ParamFeatures`."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, cast

from param_features import development, run
from param_features.development import Track
from param_features.features.param_components import ParamComponents
from param_features.features.param_features import ParamFeatures
from param_features.fitted import Fitted
from param_features.run import ComponentSweep, Sweep

Arguments = ParamSpec("Arguments")
Plain = TypeVar("Plain")
WithMethods = TypeVar("WithMethods")
Featured = ParamFeatures | ParamComponents


def with_methods(
    function: Callable[Arguments, Plain], convert: Callable[[Plain], WithMethods], returns: Any
) -> Callable[Arguments, WithMethods]:
    """The function under its own name and with its own arguments, whose result is converted.

    Args:
        function: Of a room below.
        convert: From what it returns to the same with methods.
        returns: What the converted result is, for `help` and `inspect.signature`.
    """

    @wraps(function)
    def converted(*args: Arguments.args, **kwargs: Arguments.kwargs) -> WithMethods:
        return convert(function(*args, **kwargs))

    described = cast(Any, converted)
    described.__annotations__ = {**function.__annotations__, "return": returns}
    described.__signature__ = signature(function).replace(return_annotation=returns)
    return converted


def featured(fitted: Fitted) -> Featured:
    """A fit with all methods of its kind."""
    return (ParamComponents if fitted.dictionary.kind == "components" else ParamFeatures).of(fitted)


def _sweep_with_methods(
    result: Sweep[Fitted] | ComponentSweep[Fitted],
) -> Sweep[Featured] | ComponentSweep[Featured]:
    return cast(Any, replace(cast(Any, result), fits=tuple(map(featured, result.fits))))


def _track_with_methods(result: Track[Fitted]) -> Track[Featured]:
    return cast(Track[Featured], replace(result, features=featured(result.features)))


decompose = with_methods(run.decompose, featured, Featured)
load = with_methods(run.load, featured, Featured)
sweep = with_methods(run.sweep, _sweep_with_methods, Sweep[Featured] | ComponentSweep[Featured])
track = with_methods(development.track, _track_with_methods, Track[Featured])
