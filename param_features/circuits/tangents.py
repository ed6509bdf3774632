"""How a step of one node's amount moves what the others read, and the slopes of the metric by them.

A few passes for each node on top of what the clean passes left; no Hessian is ever built.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from param_features.circuits.passes import Amounts, ByGroup, CallKey, CircuitSubject, PlaceCall, Slopes, counted
from param_features.circuits.places import Place, acting
from param_features.gradients import CANNOT_MAP, changes_along
from param_features.params import copied_buffers, held_still, plain_kernels

Flow = tuple[ByGroup, Float[Tensor, " row"]]
"""What flows from one node into every other, by group, and straight into the metric."""


@torch.no_grad()
def direct_flow(subject: CircuitSubject, clean: Slopes, amounts: Amounts) -> Flow:
    """Measure where a step of some nodes goes on its way to the metric: into which nodes first, and straight to the output.

    The step moves what a later node reads; through that node it moves the metric by ⟨g, n(ẋ)⟩, where g is the metric's
    derivative by the place's output. Ways that lead through any other place of the subject are cut there, so that every part
    of the step's first-order effect is counted where it arrives first.
    Cost: a forward-mode pass, or a forward pass and two backward passes where a layer has no forward mode.

    Args:
        subject: Whose nodes.
        clean: `subject.slopes()`.
        amounts: The step.
    """
    if subject.remembered.get("forward mode", True):
        try:
            return _flow_by_forward_mode(subject, clean, amounts)
        except CANNOT_MAP:
            pass
    flow = _flow_by_backward_passes(subject, clean, amounts)
    subject.remembered["forward mode"] = False
    return flow


def _flow_by_forward_mode(subject: CircuitSubject, clean: Slopes, amounts: Amounts) -> Flow:
    n_rows, places = len(subject.inputs), subject.places
    flows = {group.name: torch.zeros(n_rows, group.n_nodes, dtype=torch.float64) for group in subject.groups}

    def act(key: CallKey, source: Any, output: Tensor) -> Tensor:
        place, name = key[0], places[key[0]].name
        moved = tangent_of(place.inner(source, clean.cotangents[key], n_rows))
        if moved is not None:
            flows[name] += moved.double().cpu()
        bare, change = forward_ad.unpack_dual(output).primal, None
        beside = place.beside(source, output)  # no node has it, so its way goes on
        if beside is not None:
            change = tangent_of(beside)
        if name in amounts:
            step = subject.part(key, clean.calls[key], amounts[name]).detach()
            change = step if change is None else change + step
        return bare if change is None else forward_ad.make_dual(bare, change.to(bare.dtype))

    with held_still(subject.adapter.module), torch.no_grad(), _dual(subject, act):
        straight = tangent_of(subject.measured())
        straight = torch.zeros(n_rows) if straight is None else straight
    return flows, straight.double().cpu()


def _flow_by_backward_passes(subject: CircuitSubject, clean: Slopes, amounts: Amounts) -> Flow:
    """Measure the same where a layer has no forward mode: by the derivatives along the step's length."""
    n_rows, places = len(subject.inputs), subject.places
    length = torch.zeros((), dtype=torch.float64, requires_grad=True)
    names: list[str] = []
    inner: list[Tensor] = []

    def act(key: CallKey, source: Any, output: Tensor) -> Tensor:
        place, name = key[0], places[key[0]].name
        names.append(name)
        inner.append(place.inner(source, clean.cotangents[key], n_rows))
        if name not in amounts:
            return output.detach()
        change = subject.part(key, clean.calls[key], amounts[name]).detach()
        return output.detach() + (length.to(change) * change).to(output.dtype)

    with held_still(subject.adapter.module), _numbered(subject, act):
        measured = subject.measured()
        ((*moved, straight),) = changes_along([*inner, measured], [length], [[torch.ones_like(length)]])
    flows = {group.name: torch.zeros(n_rows, group.n_nodes, dtype=torch.float64) for group in subject.groups}
    for name, part in zip(names, moved, strict=True):
        flows[name] += part.double().cpu()
    return flows, straight.double().cpu()


def slope_changes(subject: CircuitSubject, amounts: Amounts) -> ByGroup:
    """Compute how every node's slope ∂m/∂α changes along a step of some nodes: Hessian times step, for each prompt.

    By three backward passes rather than by forward mode, which the gradients of some activations (SiLU) lack. The last needs
    no model: slopes u·∂m/∂α are linear in u, and so is their derivative along the step, whose slopes by u are what is asked.

    Cost: a forward pass, and two backward passes of which the first keeps its graph.
    """
    calls: dict[CallKey, PlaceCall] = {}
    probes: dict[CallKey, Tensor] = {}
    places = subject.places
    step = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def act(key: CallKey, source: Any, output: Tensor) -> Tensor:
        name = places[key[0]].name
        calls[key] = PlaceCall(source, output)
        if name in amounts:
            part = subject.part(key, calls[key], amounts[name])
            output = output + (step.to(part) * part).to(output.dtype)
        probes[key] = torch.zeros_like(output, requires_grad=True)
        return output + probes[key]

    with held_still(subject.adapter.module), _numbered(subject, act):
        values = subject.measured()
        cotangents = _gradients(values.sum(), list(probes.values()))
        slopes = subject.read(calls, dict(zip(probes, cotangents, strict=True)))
        weights = [torch.zeros_like(part, requires_grad=True) for part in slopes.values()]
        weighed = sum((weight * part).sum().double().cpu() for weight, part in zip(weights, slopes.values(), strict=True))
        (along,) = _gradients(weighed, [step])
        changes = _gradients(along, weights)
    return {name: change.detach().double().cpu() for name, change in zip(slopes, changes, strict=True)}


def _gradients(value: Any, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute gradients with their graph; zeros where the value does not depend on a tensor."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in of)
    return torch.autograd.grad(value, of, create_graph=True, allow_unused=True, materialize_grads=True)


def tangent_of(tensor: Tensor) -> Tensor | None:
    """Take the tangent that a tensor carries; None without one."""
    return forward_ad.unpack_dual(tensor).tangent


@contextmanager
def _dual(subject: CircuitSubject, act: Any) -> Iterator[None]:
    """Run a block in forward mode with an `act` that knows each place's call."""
    with forward_ad.dual_level(), _numbered(subject, act):
        yield


@contextmanager
def _numbered(subject: CircuitSubject, act: Any) -> Iterator[None]:
    """Run a block, by kernels that can be differentiated again, with an `act` that knows each place's call."""
    with plain_kernels(), copied_buffers(subject.adapter.module), counted(subject.adapter) as number:

        def numbered(place: Place, source: Any, output: Tensor) -> Tensor:
            return act((place, number(place)), source, output)

        with acting(subject.places, numbered):
            yield
