"""The type checker that jaxtyping's import hook runs: beartype set up as in `param_features.machine.checked_calls`.

It stands here too because the hook needs it before the package can be imported. Of every function the first calls of each
test are checked: loops of a thousand steps, which would take twice their time, run on without. A check is made when its
function is first called, for making one takes two milliseconds; a function inside another is made anew at each call of that,
and so are its checks: in each test the first are made.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

from beartype import BeartypeConf, beartype

N_CHECKED = 40
"""Calls of a function that are checked in a test; arguments and result count as one each."""

N_INNER = 10
"""Checks that are made in a test of a function inside another; arguments and result count as one each."""

_checked = beartype(conf=BeartypeConf(is_random=False, is_pep484_tower=True))
_calls: Counter[Callable] = Counter()
_inner: Counter[tuple[str, str]] = Counter()
_released: list[Callable] = []


def checked(function: Callable) -> Callable:
    """The check of a function's arguments, or of its result, which jaxtyping makes from its annotations."""
    name = (function.__module__, function.__qualname__)
    if "<locals>" in name[1]:
        _inner[name] += 1
        if _inner[name] > N_INNER:
            return function
    check: Callable | None = None

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal check
        check = check or _checked(function)
        _calls[counted] += 1
        if _calls[counted] == N_CHECKED:
            _release(function.__module__, function.__qualname__)
        return check(*args, **kwargs)

    return counted


def check_anew() -> None:
    """Check every function again, from its next call on."""
    for function in _released:
        vars(function).pop("__no_type_check__", None)
    _released.clear()
    _calls.clear()
    _inner.clear()


def _release(module: str, name: str) -> None:
    """Let jaxtyping call a function without a check; one that is not found by its name stays checked."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = inspect.getattr_static(found, part, None)
    found = getattr(found, "__func__", None) or getattr(found, "fget", None) or found
    if inspect.isfunction(found):
        found = inspect.unwrap(found)
        found.__no_type_check__ = True
        _released.append(found)
