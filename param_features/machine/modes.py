"""Torch's modes that change what a pass computes, or which code it runs: switched off while the library runs a model."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from inspect import isfunction
from typing import TypeVar

import torch

Class = TypeVar("Class", bound=type)

_AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def own_modes() -> Iterator[None]:
    """Run a block, or a function that this decorates, without the caller's autocast and without `torch.compile`.

    What is computed inside is the same whatever the caller switched on. Autocast's cache of cast weights is not used either.
    """
    with full_precision(), uncompiled():
        yield


def methods_in_own_modes(class_: Class) -> Class:
    """Decorate every public method that a class defines with `own_modes`."""
    for name, method in list(vars(class_).items()):
        if isfunction(method) and not name.startswith("_"):
            setattr(class_, name, own_modes()(method))
    return class_


def has_saved_tensor_hooks() -> bool:
    """Whether hooks, such as those of gradient checkpointing, decide at this moment what is kept for the backward pass."""
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks("hooks are on"):
            return False
    except RuntimeError:
        return True


@contextmanager
def saved_as_they_are() -> Iterator[None]:
    """Run a block whose tensors saved-tensor hooks do not get: those that are read again at once.

    Checkpointing would run the layer again to give them back.
    """
    if not has_saved_tensor_hooks():
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept, lambda kept: kept):
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Run a block without autocast."""
    with ExitStack() as modes:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                modes.enter_context(torch.autocast(device, enabled=False, cache_enabled=False))
        yield


class _Stance:
    """How many blocks of `uncompiled` are running, whether torch was told, and what tells it otherwise again."""

    n_blocks = 0
    is_forced = False
    end = ExitStack()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run a block in which models that `torch.compile` was given run as they are written.

    Compiled code keeps the hooks that it was compiled with: one that is added later would not run. Blocks may end in any
    order.
    """
    if (
        not _Stance.is_forced and "torch._dynamo" in sys.modules
    ):  # it takes seconds to import, and without it nothing is compiled
        _Stance.end.enter_context(torch.compiler.set_stance("force_eager"))
        _Stance.is_forced = True
    _Stance.n_blocks += 1
    try:
        yield
    finally:
        _Stance.n_blocks -= 1
        if not _Stance.n_blocks:
            _Stance.is_forced = False
            _Stance.end.close()
