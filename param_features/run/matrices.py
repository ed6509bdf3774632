"""Which of the chosen parameters have components, and how many each gets."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from param_features.errors import AdapterError, FeatureCountError, UnknownParameterError, nearest
from param_features.fit.components import not_applied_once
from param_features.gradients import GradientEngine, check_influence, no_matrix_at_one_place, plan_engine, sites_of
from param_features.gradients import without_components as without_sites
from param_features.machine import notify
from param_features.params import ParamSubset
from param_features.problem import Problem

_MOST = 512
"""Components of a matrix where none are asked for: twice the smaller side, and no more than this."""


def engine_of_matrices(problem: Problem, named: Collection[str]) -> GradientEngine:
    """The engine of those parameters that have components.

    Parameters that were chosen by a glob and have none are left out with a `Notice`.

    Args:
        problem: With all chosen parameters.
        named: Those that were chosen by name.

    Raises:
        AdapterError: A parameter that was chosen by name has no components, or none has.
        NoGradientError: The output is not computed from a parameter.
    """
    views, taps = problem.subset.views, problem.adapter.taps
    seen = {view.name: no_matrix_at_one_place(view, len(taps(view)) or 1) for view in views}
    left_out = _open(((name, why) for name, why in seen.items() if why is not None), named)
    while True:
        engine = plan_engine(_without(problem, left_out))
        found = without_sites(engine) or not_applied_once(engine, sites_of(engine), problem.data.rows(slice(0, 2)))
        if not found:
            break
        left_out |= _open(found.items(), named)
    if left_out:
        _tell(left_out)
    check_influence(engine, problem.data)
    return engine


def _open(found: Iterable[tuple[str, str]], named: Collection[str]) -> dict[str, str]:
    """Parameters that have no components, of which none was chosen by name.

    Raises:
        AdapterError: One was.
    """
    reasons = dict(found)
    for name, why in reasons.items():
        if name in named:
            raise AdapterError(why)
    return reasons


def _without(problem: Problem, left_out: Mapping[str, str]) -> Problem:
    """The problem of the other parameters.

    Raises:
        AdapterError: There are none.
    """
    if not left_out:
        return problem
    rest = tuple(view for view in problem.subset.views if view.name not in left_out)
    if not rest:
        raise AdapterError(f"None of the chosen parameters has components. {next(iter(left_out.values()))}")
    return replace(problem, subset=ParamSubset(rest))


def _tell(left_out: Mapping[str, str]) -> None:
    first, *further = left_out
    which = f"{first!r} and {len(further)} more are" if further else f"{first!r} is"
    notify(f"{which} left out of params=, since they have no components. The first: {left_out[first]}")


def counts_of(n_features: int | Mapping[str, int] | None, subset: ParamSubset, aliases: Mapping[str, str]) -> dict[str, int]:
    """How many components each matrix gets, by name.

    Args:
        n_features: Of every matrix; or by name or glob, a name before a glob and of several globs the first; matrices that
            nothing speaks of, and all where None is given, get twice their smaller side, at most 512.
        subset: The matrices.
        aliases: Further names of parameters.

    Raises:
        FeatureCountError: A number is below 1, or no whole number.
        UnknownParameterError: A name or glob means none of the matrices; lists the nearest.
    """
    wanted = n_features if isinstance(n_features, Mapping) else {} if n_features is None else {"*": n_features}
    for name, n in wanted.items():
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            of = f" of {name!r}" if isinstance(n_features, Mapping) else ""
            raise FeatureCountError(
                f"n_features={n!r}{of} must be a whole number of at least 1: the components of a matrix."
            )
    names = {view.name: view.name for view in subset.views}
    names |= {alias: real for alias, real in aliases.items() if real in names}
    of_names = {names[name]: n for name, n in wanted.items() if name in names}
    globs = {key: n for key, n in wanted.items() if key not in names}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise UnknownParameterError(
                f"n_features gives a number for {glob!r}, and none of the matrices that are decomposed is called so; "
                f"nearest: {nearest(glob, names)}."
            )
    return {
        view.name: of_names.get(view.name) or _count_of(view.name, view.matrix_shape, names, globs) for view in subset.views
    }


def _count_of(name: str, shape: tuple[int, int], names: Mapping[str, str], globs: Mapping[str, int]) -> int:
    own = [called for called, real in names.items() if real == name]
    matched = (n for glob, n in globs.items() if any(fnmatchcase(called, glob) for called in own))
    return next(matched, min(_MOST, 2 * min(shape)))
