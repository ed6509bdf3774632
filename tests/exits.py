"""The ways out of a block whose context manager must restore what it touched."""

from contextlib import AbstractContextManager, nullcontext

import pytest

EXITS = [None, ZeroDivisionError, KeyboardInterrupt]


def leaving_by(error: type[BaseException] | None) -> AbstractContextManager:
    """Expect the error to leave the block; None for an ordinary end."""
    return nullcontext() if error is None else pytest.raises(error)


def leave(error: type[BaseException] | None) -> None:
    """Leave the block by the error; None goes on to its end."""
    if error is not None:
        raise error
