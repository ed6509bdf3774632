"""Stopping a fit, or a harvest to disk, in the middle of what it does."""

import os
import signal
from contextlib import contextmanager

import pytest

from param_features.fit.training import Trainer
from param_features.gradients.disk import shards

STOPPED = RuntimeError("stopped here")


def stop_here():
    """What stops a fit."""
    raise STOPPED


@contextmanager
def stopped_after(n_steps, kind=Trainer, stop=stop_here):
    """Stop at the end of the step after so many, its random draws made and its tensors changed, but not yet kept."""
    step, done = kind.step, iter(range(10**6))

    def stopping(trainer):
        seen = step(trainer)
        if next(done) == n_steps:
            stop()
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "step", stopping)
        yield


@contextmanager
def hearing_interrupts():
    """Let Ctrl-C be heard, also in a process that a shell started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def failing_at(n_writes: int, error: BaseException):
    """Let only so many writes to shards through."""
    write, count = os.pwrite, iter(range(10**9))

    def pwrite(*args):
        if next(count) >= n_writes:
            raise error
        return write(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.os, "pwrite", pwrite)
        yield
