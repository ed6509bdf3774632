"""Capturing the inputs and outputs of tapped layers during a forward pass, with hooks that leave on exit."""

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.hooks import RemovableHandle

from param_features.errors import ModelStateError
from param_features.gradients.operations import Use, Watch
from param_features.params import ParamSubset, Site, Tap


class StopForward(BaseException):
    """Ends a forward pass at the head's input; never leaves this package."""


class Capture:
    """What hooks saw: for each site, one tensor per call of its module, in order of the calls; None for a call without one.

    Inputs and outputs are kept apart, since one site may serve as both: `hook_post` shows W_out's input and b_in's output.

    Attributes:
        inputs: Detached, but for the one at which the forward pass was stopped.
        outputs: Roots of gradients.
        kept_input: The input of the last call of the module whose input is to be kept, on the graph; None without one.
        owners: Of sites whose rows the model gathers, which samples they belong to.
    """

    def __init__(self, watch: Watch | None = None) -> None:
        """Start with nothing captured."""
        self._watch = watch
        self.inputs: dict[Site, list[Any]] = defaultdict(list)
        self.outputs: dict[Site, list[Any]] = defaultdict(list)
        self.kept_input: Tensor | None = None
        self.owners: dict[Site, Any] = {}

    @property
    def uses(self) -> list[Use]:
        """Uses of parameters that are watched at operations, in the order of the calls."""
        return [] if self._watch is None else self._watch.uses

    def n_rows_of(self, stored: Tensor) -> tuple[int, ...]:
        """How many rows the output of each use of a Parameter has."""
        return tuple(len(use.output) for use in self.uses if use.operand.stored is stored)

    def is_understood(self, stored: Tensor) -> bool:
        """Whether a Parameter that is watched is used, and only by operations with a rule."""
        return self._watch is not None and self._watch.why_not(stored) is None

    def uses_of(self, stored: Tensor) -> list[Use]:
        """The uses of one Parameter; errors as of `Watch.uses_of`."""
        assert self._watch is not None, "a parameter is watched"
        return self._watch.uses_of(stored)


@contextmanager
def capturing(
    taps: Iterable[Tap], *, stop_at: nn.Module | None = None, keep: nn.Module | None = None, watch: Watch | None = None
) -> Iterator[Capture]:
    """Hook the taps' sites. Outputs become roots of gradients: `torch.autograd.grad` may ask for each captured output.

    An output that needs no gradient yet becomes a leaf, so that the graph starts there; every output is passed on as a
    copy, so that in-place layers further up cannot spoil what was captured.

    Args:
        taps: Whose inputs and outputs to capture.
        stop_at: A module whose first input is captured, and at whose call the forward pass ends with `StopForward`.
        keep: A module whose first input is kept.
        watch: Notes uses of parameters at operations meanwhile.
    """
    capture = Capture(watch)
    taps = list(taps)
    inputs = dict.fromkeys(tap.input for tap in taps)
    outputs = dict.fromkeys(tap.output for tap in taps)
    handles: list[RemovableHandle] = []
    try:
        for site in inputs:
            handles.append(_watch_input(capture, site))
        for site in outputs:
            handles.append(_root_output(capture, site))
        if keep is not None:
            handles.append(_keep(capture, keep))
        if stop_at is not None:
            handles.append(_stop_at(capture, stop_at))
        with watch or nullcontext():
            yield capture
    finally:
        for handle in handles:
            handle.remove()


def argument(args: tuple, kwargs: dict, which: str | int) -> Tensor | None:
    """The input of a call that a site means; None where there is none or it is no tensor."""
    if isinstance(which, str):
        return kwargs.get(which)
    values = args or tuple(kwargs.values())
    return values[which] if which < len(values) and isinstance(values[which], Tensor) else None


def _watch_input(capture: Capture, site: Site) -> RemovableHandle:
    if site.which == "output":
        return site.module.register_forward_hook(
            lambda module, args, output: capture.inputs[site].append(output.detach() if isinstance(output, Tensor) else None)
        )

    def watch_all(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        capture.inputs[site].append(tuple(tensor.detach() for tensor in tensors))

    if site.which == "call":
        return site.module.register_forward_pre_hook(watch_all, with_kwargs=True)

    def watch(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensor = argument(args, kwargs, site.which)
        capture.inputs[site].append(tensor.detach() if tensor is not None else None)

    return site.module.register_forward_pre_hook(watch, with_kwargs=True)


def _root_output(capture: Capture, site: Site) -> RemovableHandle:
    def root(module: nn.Module, args: tuple, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            capture.outputs[site].append(None)
            return None
        _refuse_reentrant_checkpointing(module)
        leaf = output if output.requires_grad else output.detach().requires_grad_()
        capture.outputs[site].append(leaf)
        return leaf.clone()

    return site.module.register_forward_hook(root)


def _refuse_reentrant_checkpointing(module: nn.Module) -> None:
    """Refuse a layer's call whose gradient torch would leave out: one without a graph, inside an autograd.Function.

    Raises:
        ModelStateError: Says how else to checkpoint.
    """
    frame = None if torch.is_grad_enabled() else sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("ctx"), FunctionCtx):
            raise ModelStateError(
                f"The {type(module).__name__} of a chosen parameter is called under reentrant gradient checkpointing, which "
                "gives no gradients while the model's weights are frozen. Checkpoint with use_reentrant=False, or not at "
                "all."
            )
        frame = frame.f_back


@contextmanager
def with_gradients(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Run a block in which no call of these layers may be one whose gradients torch leaves out.

    Raises:
        ModelStateError: Such a layer is called under reentrant gradient checkpointing.
    """
    handles = [
        layer.register_forward_pre_hook(lambda module, _: _refuse_reentrant_checkpointing(module)) for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def differentiable(subset: ParamSubset, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Run a block with other tensors in place of the parameters, none of whose gradients torch leaves out.

    Backward passes belong inside: layers that are checkpointed run again in them.

    Raises:
        ModelStateError: Such a layer is called under reentrant gradient checkpointing.
    """
    with subset.replaced(tensors), with_gradients({owner for view in subset.views for owner, _ in view.places}):
        yield


def _keep(capture: Capture, module: nn.Module) -> RemovableHandle:
    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        capture.kept_input = argument(args, kwargs, 0)

    return module.register_forward_pre_hook(keep, with_kwargs=True)


def _stop_at(capture: Capture, head: nn.Module) -> RemovableHandle:
    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        capture.inputs[Site(head, 0)].append(argument(args, kwargs, 0))
        raise StopForward

    return head.register_forward_pre_hook(stop, with_kwargs=True)
