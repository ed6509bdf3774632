"""Layers that do not run the forward that their rule was written for, such as a subclass's own: whether the rule holds.

Half precision hides much: a gradient may be 5 % off within its rounding. Here one layer runs alone in float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from param_features.errors import ModelStateError
from param_features.gradients.capture import Capture
from param_features.gradients.engine import GradientEngine, Routes
from param_features.gradients.rules.registry import has_ruled_forward, required_rule
from param_features.params import ParamView, Tap, held_still
from param_features.problem import ModelInputs

_Agrees = Callable[[ParamView, Tap, nn.Module, Tensor], bool]
"""Of a parameter, its tap, the layer alone in float64, and inputs of it."""

FAILS = (RuntimeError, ValueError, LookupError, TypeError, AssertionError, AttributeError)
"""What a rule or a model raises where tensors are other than it thinks."""

DISAGREES = "its rule disagrees with autograd here"
_FAR = 10.0
_ROWS = 2
_TOLERANCE = 1e-4


def unproven_rules(engine: GradientEngine, inputs: ModelInputs) -> dict[str, str]:
    """Factored parameters with a layer that runs another forward, for which their rule does not hold, and why.

    Cost: nothing where no layer does; else a forward pass, and what `_why_not` takes of each such layer.

    Raises:
        ModelStateError: The layer is called under reentrant gradient checkpointing.
    """
    return _failing(engine, inputs, _is_foreign, _agrees)


def uneven_layers(engine: GradientEngine, inputs: ModelInputs) -> dict[str, str]:
    """Factored parameters to whose layer's output a change of the weight does not add what their rule says, and why.

    Such a layer rounds its weight, say, and hands gradients on as if it had not; or limits the norms of a table. Cost and
    errors are those of `unproven_rules`.
    """
    return _failing(engine, inputs, lambda tap: _is_foreign(tap) or _limits_norms(tap), _adds_up)


def _failing(
    engine: GradientEngine, inputs: ModelInputs, is_doubted: Callable[[Tap], bool], agrees: _Agrees
) -> dict[str, str]:
    taps = {name: [tap for tap in uses if is_doubted(tap)] for name, uses in engine.routes.taps.items()}
    taps = {name: uses for name, uses in taps.items() if uses}
    if not taps:
        return {}
    only = replace(engine, routes=Routes({name: engine.routes.taps[name] for name in taps}))
    with held_still(engine.adapter.module):
        try:
            with only.capturing(len(inputs)) as capture:
                only.root(inputs, capture)
        except ModelStateError:
            raise
        except FAILS:
            return {}  # no rule runs here, which the comparison with autograd finds out
        why = {name: [_why_not(engine.subset[name], tap, capture, agrees) for tap in uses] for name, uses in taps.items()}
    return {name: next(filter(None, reasons)) for name, reasons in why.items() if any(reasons)}


def _is_foreign(tap: Tap) -> bool:
    """Whether a tap's layer runs another forward than that of the class that its rule belongs to."""
    return isinstance(tap.layer, nn.Module) and not has_ruled_forward(tap.rule, tap.attribute, tap.layer)


def _limits_norms(tap: Tap) -> bool:
    """Whether a table rescales at each call what it reads."""
    return getattr(tap.layer, "max_norm", None) is not None


def _why_not(view: ParamView, tap: Tap, capture: Capture, agrees: _Agrees) -> str | None:
    """Compare a rule with autograd on the layer alone, at inputs that it had and at random ones far from zero.

    A layer that was not called on this data is left to the comparison of whole models. Cost: a copy of the layer's weights
    in float64, a forward pass of two rows and a backward pass of each, twice.
    """
    inputs = next((each[:_ROWS] for each in capture.inputs[tap.input] if each is not None and len(each)), None)
    if inputs is None:
        return None
    probes = [inputs]
    if inputs.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        probes = [inputs.double(), _FAR * torch.randn(inputs.shape, generator=generator).to(inputs.device).double()]
    assert isinstance(tap.layer, nn.Module), "members of a stack have rules of their own"
    try:
        with _in_float64(tap.layer):
            return None if all(agrees(view, tap, tap.layer, probe) for probe in probes) else DISAGREES
    except FAILS as error:
        return f"its rule failed: {error}"


def _agrees(view: ParamView, tap: Tap, layer: nn.Module, inputs: Tensor) -> bool:
    weight = layer._parameters[tap.attribute]
    assert weight is not None, "the tap's parameter is there"
    output = layer.forward(inputs)
    generator = torch.Generator().manual_seed(1)
    cotangent = torch.randn(output.shape, generator=generator).to(output)
    found = required_rule(tap.rule, tap.attribute)(layer, inputs, cotangent).dense().matrix
    rows = [
        torch.autograd.grad(row, weight, at_row, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
        for row, at_row in zip(output, cotangent, strict=True)
    ]
    right = view.to_matrix(torch.stack(rows)).to(found)
    return found.shape == right.shape and bool((found - right).norm() <= _TOLERANCE * right.norm() + 1e-12)


@torch.no_grad()
def _adds_up(view: ParamView, tap: Tap, layer: nn.Module, inputs: Tensor) -> bool:
    """Whether a random change of the weight changes the output by what the rule's gradient says, whatever its size."""
    weight, padding = layer._parameters[tap.attribute], getattr(layer, "padding_idx", None)
    assert weight is not None, "the tap's parameter is there"
    if padding is not None:
        inputs = inputs.masked_fill(inputs == padding, 0 if padding else 1)  # read, and without gradient
    generator = torch.Generator().manual_seed(2)
    change = _FAR * torch.randn(view.matrix_shape, generator=generator).to(weight)
    before = layer.forward(inputs)
    changed = view.layout.read(weight) + view.from_matrix(change)
    weight.copy_(view.layout.write(changed, weight))
    added = layer.forward(inputs) - before
    cotangent = torch.randn(added.shape, generator=generator).to(added)
    gradient = required_rule(tap.rule, tap.attribute)(layer, inputs, cotangent)
    gradient = gradient if tap.rows is None else gradient.rows(tap.rows.to(cotangent.device))
    found, right = (gradient.dense().matrix * change).sum((1, 2)), (cotangent * added).flatten(1).sum(1)
    return bool((found - right).norm() <= _TOLERANCE * right.norm() + 1e-12)


@contextmanager
def _in_float64(layer: nn.Module) -> Iterator[None]:
    """Run a block with float64 leaves in place of a layer's parameters and float64 copies of its buffers."""
    tensors: list[tuple[dict, str, Tensor]] = [
        (held, name, tensor)
        for child in layer.modules()
        for held in (child._parameters, child._buffers)
        for name, tensor in held.items()
        if tensor is not None and tensor.is_floating_point()
    ]
    copies = {id(tensor): tensor.detach().double().clone() for _, _, tensor in tensors}
    try:
        for held, name, tensor in tensors:
            held[name] = copies[id(tensor)].requires_grad_(isinstance(tensor, nn.Parameter))
        yield
    finally:
        for held, name, tensor in tensors:
            held[name] = tensor
