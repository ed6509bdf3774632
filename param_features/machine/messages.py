"""Notices to the user, on the error stream."""

import sys
from collections.abc import Callable

from tqdm import tqdm


def notices(is_wanted: bool) -> Callable[[str], None]:
    """Return a function that prints a line on the error stream, beside progress bars, or does nothing if unwanted."""
    return (lambda message: tqdm.write(message, file=sys.stderr)) if is_wanted else (lambda _: None)
