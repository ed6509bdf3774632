"""Messages to the user: lines beside the progress bars, and notices, which are warnings."""

import sys
import warnings
from collections.abc import Callable

from tqdm import tqdm

from param_features.errors import Notice
from param_features.machine.processes import launched

_NOT_THE_CALLER = ("param_features", "beartype", "contextlib", "functools", "jaxtyping", "torch")
"""Packages whose frames lie between a notice and the line of the user's that it is about."""


def spoken(is_wanted: bool) -> Callable[[str], None]:
    """Return a function that prints a line on the error stream, beside progress bars, or does nothing if unwanted."""
    return (lambda message: tqdm.write(message, file=sys.stderr)) if is_wanted else (lambda _: None)


def notify(message: str) -> None:
    """Warn of what changes the meaning of a number, as a `Notice` at the user's own line.

    Progress settings do not silence it; Python's filters of warnings do. Of several processes the main one warns.
    """
    if not launched().is_main:
        return
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in _NOT_THE_CALLER:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, Notice, stacklevel=depth)
