"""The calls that give features: those of the rooms below, whose results get the methods of `ParamFeatures`."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import ParamSpec, cast

from param_features import development, run
from param_features.development import Track
from param_features.features.param_features import ParamFeatures
from param_features.fitted import Fitted
from param_features.run import Sweep

Arguments = ParamSpec("Arguments")


def with_methods(function: Callable[Arguments, Fitted]) -> Callable[Arguments, ParamFeatures]:
    """The same call, which returns `ParamFeatures`."""

    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> ParamFeatures:
        return ParamFeatures.of(function(*args, **kwargs))

    return call


decompose = with_methods(run.decompose)
load = with_methods(run.load)


def _sweep_with_methods(function: Callable[Arguments, Sweep[Fitted]]) -> Callable[Arguments, Sweep[ParamFeatures]]:
    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Sweep[ParamFeatures]:
        result = function(*args, **kwargs)
        return cast(Sweep[ParamFeatures], replace(result, fits=tuple(map(ParamFeatures.of, result.fits))))

    return call


def _track_with_methods(function: Callable[Arguments, Track[Fitted]]) -> Callable[Arguments, Track[ParamFeatures]]:
    @wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Track[ParamFeatures]:
        result = function(*args, **kwargs)
        return cast(Track[ParamFeatures], replace(result, features=ParamFeatures.of(result.features)))

    return call


sweep = _sweep_with_methods(run.sweep)
track = _track_with_methods(development.track)
