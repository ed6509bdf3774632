"""Notices to the user, on the error stream."""

import sys
from collections.abc import Callable

from tqdm import tqdm


def notices(is_wanted: bool) -> Callable[[str], None]:
    """Prints a line on the error stream, beside progress bars; does nothing where no notices are wanted."""
    return (lambda message: tqdm.write(message, file=sys.stderr)) if is_wanted else (lambda _: None)
