"""Changes that last as long as a `with` block, and say so where none is entered."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ContextDecorator
from types import TracebackType

from param_features.errors import ModelStateError
from param_features.machine.messages import notify
from param_features.machine.processes import waiting_for_none


class Block(ContextDecorator, AbstractContextManager):
    """A change that lasts as long as a `with` block; may be entered many times, also inside itself.

    Dropped without having been entered it warns with a `Notice`: nothing was changed.
    """

    _is_used = False

    def __init__(self, begin: Callable[[], AbstractContextManager], call: str) -> None:
        """Remember how to begin; nothing is changed yet.

        Args:
            begin: Makes the change, as a context manager.
            call: What the user wrote, for messages: `"features.steer(…)"`.
        """
        self._begin, self._call = begin, call
        self._entered: list[AbstractContextManager] = []

    def __enter__(self) -> "Block":
        """Make the change."""
        self._is_used = True
        block = self._begin()
        block.__enter__()
        self._entered.append(block)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Take the change back, bit for bit.

        Raises:
            ModelStateError: The block was never entered.
        """
        if not self._entered:
            raise ModelStateError(f"{self._call} was left more often than entered. Use it in a with statement.")
        self._entered.pop().__exit__(kind, error, trace)

    def __repr__(self) -> str:
        """The call, and whether it acts."""
        return f"{self._call}: {self._state}"

    @property
    def _state(self) -> str:
        if self._entered:
            return "entered"
        return "not entered; write: with " + self._call + ": …"

    def __del__(self) -> None:
        """Warn where it was dropped without having been entered or read."""
        if not self._is_used and not sys.is_finalizing() and hasattr(self, "_call"):
            notify(f"{self._call} was not entered, so nothing was changed. Write: with {self._call}: …")


def alone() -> Block:
    """A block whose calls wait for no other process: for what one process alone does, such as the main one."""
    return Block(waiting_for_none, "pf.alone()")
