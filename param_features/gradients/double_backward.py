"""J v where forward mode cannot run: by a second backward pass through the first, or row by row of J."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from param_features.errors import ModelStateError
from param_features.gradients.graph import nodes_of
from param_features.gradients.mapping import CANNOT_MAP

_MOST_ROWS = 2**16
"""Most numbers of an output for each of which a backward pass is run."""

Step = Sequence[Tensor]
"""What is added to each leaf."""


def changes_along(outputs: Sequence[Tensor], leaves: Sequence[Tensor], steps: Sequence[Step]) -> Iterator[list[Tensor]]:
    """The change of the outputs of a graph along each step of its leaves, to first order; the graph stays.

    ⟨Jᵀu, v⟩ = ⟨u, J v⟩ is linear in u, so its derivative by u is J v, whatever the model is.

    Cost: a backward pass with a graph of its own, and one through that for each step. Where torch lacks second derivatives
    too, a backward pass for each number of the outputs.

    Raises:
        ModelStateError: Torch lacks them, and the outputs hold more than 65,536 numbers.
    """
    reached = [output for output in outputs if output.requires_grad]
    try:
        found = _twice(reached, leaves, steps)
    except CANNOT_MAP as error:
        found = _by_rows(reached, leaves, steps, error)
    for changes in found:
        by_output = iter(changes)
        yield [next(by_output) if output.requires_grad else torch.zeros_like(output) for output in outputs]


def _twice(outputs: Sequence[Tensor], leaves: Sequence[Tensor], steps: Sequence[Step]) -> Sequence[Sequence[Tensor]]:
    probes = [torch.zeros_like(output, requires_grad=True) for output in outputs]
    settings = {"allow_unused": True, "materialize_grads": True}
    with _refusing_lost_graphs(outputs):
        pulled = torch.autograd.grad(outputs, leaves, probes, create_graph=True, **settings)
    connected = [place for place, gradient in enumerate(pulled) if gradient.requires_grad]
    if not connected:
        return [[torch.zeros_like(output) for output in outputs] for _ in steps]
    return [
        torch.autograd.grad(
            [pulled[place] for place in connected],
            probes,
            [step[place].to(pulled[place]) for place in connected],
            retain_graph=True,
            **settings,
        )
        for step in steps
    ]


@contextmanager
def _refusing_lost_graphs(outputs: Sequence[Tensor]) -> Iterator[None]:
    """Raise where a custom function's backward pass leaves no graph: torch would take its second derivative for zero."""

    def checked(name: str) -> Callable[[Sequence[Any], Sequence[Any]], None]:
        def check(grad_inputs: Sequence[Any], grad_outputs: Sequence[Any]) -> None:
            along = [gradient for gradient in grad_outputs if gradient is not None and gradient.requires_grad]
            results = [gradient for gradient in grad_inputs if gradient is not None]
            if along and not all(_follows(result, along) for result in results):
                raise NotImplementedError(f"the backward pass of {name} cannot be differentiated")

        return check

    custom: list[Any] = [node for node in nodes_of(outputs) if isinstance(node, torch.autograd.function.BackwardCFunction)]
    handles = [node.register_hook(checked(node.name())) for node in custom]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _follows(result: Tensor, along: Sequence[Tensor]) -> bool:
    """Whether a tensor's graph leads back to one of the others; `once_differentiable` gives it a graph that does not."""
    if not result.requires_grad:
        return False
    found = torch.autograd.grad(result, along, torch.ones_like(result), retain_graph=True, allow_unused=True)
    return any(gradient is not None for gradient in found)


def _by_rows(
    outputs: Sequence[Tensor], leaves: Sequence[Tensor], steps: Sequence[Step], error: Exception
) -> Sequence[Sequence[Tensor]]:
    n_rows = sum(output.numel() for output in outputs)
    if n_rows > _MOST_ROWS:
        raise ModelStateError(
            f"Neither forward mode nor a second backward pass runs through this model ({error}), and a backward pass for "
            f"each of {n_rows} output numbers would not end soon. Give fewer inputs, or use the model without own kernels."
        ) from error
    changes = [[torch.zeros_like(output) for output in outputs] for _ in steps]
    for place, output in enumerate(outputs):
        for number, value in enumerate(output.flatten()):
            row = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
            for change, step in zip(changes, steps, strict=True):
                slope = sum((part * along.to(part)).sum().cpu() for part, along in zip(row, step, strict=True))
                change[place].view(-1)[number] = slope
    return changes
