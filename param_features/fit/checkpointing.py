"""Keeping checkpoints while a fit steps: going on from the newest, writing further ones, and Ctrl-C between two steps."""

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from param_features.errors import DiskFullError
from param_features.files import is_full, size_text
from param_features.fit.checkpoint import (
    Checkpoint,
    Resumable,
    before,
    packed_checkpoint,
    read_newest,
    restore,
    state_of,
    write_checkpoint,
)
from param_features.fit.loop import StepwiseFit
from param_features.gradients.disk import Recipe, refuse_differences

_SETTINGS = "fit."
"""Begins the names of the settings, which are each method's own."""


@dataclass(frozen=True)
class Checkpoints:
    """Where one fit keeps its checkpoints.

    Attributes:
        path: The newest one's file.
        recipe: All that decides what the fit finds, as JSON.
        every: Seconds from one to the next; 0 keeps one after each step.
        is_written: Whether this process writes them; of those that share a fit, all read and the main one writes.
    """

    path: Path
    recipe: Recipe
    every: float = 60.0
    is_written: bool = True

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is any.

        Raises:
            StoreError: It is damaged, or of a fit with other arguments, data or weights; names every difference.
        """
        checkpoint = read_newest(self.path)
        if checkpoint is not None:
            refuse_other_fit(checkpoint.recipe, self.recipe, self.path)
        return checkpoint

    def write(self, trainer: Resumable) -> None:
        """Write a checkpoint of where the trainer is.

        Raises:
            DiskFullError: There is no room; says which checkpoint stays.
            OSError: The file cannot be written for another reason.
        """
        data = packed_checkpoint(Checkpoint(state_of(trainer), self.recipe))
        try:
            write_checkpoint(self.path, data)
        except OSError as error:
            if is_full(error):
                self._refuse_full(error, len(data), trainer.n_steps)
            raise

    def _refuse_full(self, error: OSError, n_bytes: int, n_steps: int) -> None:
        """Say what is needed where the disk is full.

        Raises:
            DiskFullError: Always.
        """
        last, free = read_newest(self.path), shutil.disk_usage(self.path.parent).free
        stays = "None was kept before" if last is None else f"That of step {last.n_steps} stays in {before(self.path).name}"
        raise DiskFullError(
            f"{self.path}: {error.strerror}. The checkpoint of step {n_steps} takes {size_text(n_bytes)}, {size_text(free)} "
            f"are free. {stays}: make room for two and call again with the same arguments, or give another checkpoints=."
        ) from error


def refuse_other_fit(recorded: Recipe, wanted: Recipe, path: Path) -> None:
    """Refuse to go on with a fit of something else.

    Raises:
        StoreError: Names every difference, with both values.
    """
    names = [*recorded, *(name for name in wanted if name not in recorded)]
    if recorded["method"] != wanted["method"]:
        names = [name for name in names if name in recorded and name in wanted and not name.startswith(_SETTINGS)]
    then = "Give the same arguments to go on with it, or another checkpoints=."
    recipes = ({name: recipe.get(name) for name in names} for recipe in (recorded, wanted))
    refuse_differences(*recipes, where=str(path), then=then, was="is of another fit")


@contextmanager
def keeping(trainer: Resumable, checkpoints: Checkpoints | None) -> Iterator[StepwiseFit]:
    """Have a trainer go on from its newest checkpoint and write further ones as it steps; without any, leave it alone.

    One is kept before the first step, so that a full disk shows at once, and one after the last. Ctrl-C waits for the end
    of the step in hand, and a second one does not: the state within a step is nothing to go on from.

    Raises:
        StoreError: The newest checkpoint is damaged or of another fit.
        DiskFullError: A checkpoint does not fit.
    """
    if checkpoints is None:
        yield trainer
        return
    checkpoint = checkpoints.newest()
    if checkpoint is not None:
        restore(trainer, checkpoint.state)
    steps = _CheckpointedSteps(trainer, checkpoints, -1 if checkpoint is None else checkpoint.n_steps)
    with steps.waiting():
        steps.write()
        yield steps
        steps.write()


class _CheckpointedSteps:
    """A trainer whose steps are followed by checkpoints."""

    def __init__(self, trainer: Resumable, checkpoints: Checkpoints, n_written: int) -> None:
        """Begin at the step where the trainer is."""
        self.trainer, self.checkpoints = trainer, checkpoints
        self._written_at, self._n_written = time.monotonic(), n_written
        self._is_within, self._is_interrupted = False, False

    @property
    def n_steps(self) -> int:
        """How many steps were taken."""
        return self.trainer.n_steps

    def status(self, outcome: Any) -> dict[str, str]:
        """What the progress bar shows, as the trainer says it."""
        return self.trainer.status(outcome)

    def step(self) -> Any:
        """Take one step, and write a checkpoint where it is time.

        Raises:
            KeyboardInterrupt: Ctrl-C came meanwhile.
        """
        self._is_within = True
        outcome = self.trainer.step()
        if time.monotonic() - self._written_at >= self.checkpoints.every:
            self._write()
        self._is_within = False
        if self._is_interrupted:
            raise KeyboardInterrupt
        return outcome

    def write(self) -> None:
        """Keep a checkpoint of the last whole step, unless there is one."""
        if not self._is_within and self._n_written < self.trainer.n_steps:
            self._is_within = True
            self._write()
            self._is_within = False

    def _write(self) -> None:
        if self.checkpoints.is_written:
            self.checkpoints.write(self.trainer)
        self._written_at, self._n_written = time.monotonic(), self.trainer.n_steps

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let Ctrl-C wait, where it would have raised and this thread is the one that hears of it."""
        is_heard = threading.current_thread() is threading.main_thread()
        if not is_heard or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self._is_within or self._is_interrupted:
            signal.default_int_handler(number, frame)
        self._is_interrupted = True
