"""Running something for many samples or directions at once by `torch.vmap`, or one after another where torch cannot."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")

CANNOT_MAP = (RuntimeError, NotImplementedError)
"""What torch raises for a model that vmap cannot map."""


def mapped_or_looped(mapped: Callable[[], Result], looped: Callable[[], Result]) -> Result:
    """What the mapped run gives, or the loop where torch cannot map the model."""
    try:
        with quiet_loops():
            return mapped()
    except CANNOT_MAP:
        return looped()


@contextmanager
def quiet_loops() -> Iterator[None]:
    """Silence vmap where it loops over a kernel: its warning says nothing that the user could act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        yield
