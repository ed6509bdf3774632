"""Gradients of one parameter from what a pass captured: its rule at every call, or its uses at operations, summed."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from param_features.errors import AdapterError
from param_features.gradients.capture import Capture
from param_features.gradients.operations import Viewed
from param_features.gradients.rows import at_least_float32, by_row
from param_features.gradients.rules.registry import required_rule
from param_features.gradients.types import Gradient, join_positions
from param_features.params import Site, Tap

Deltas = dict[tuple[Site, int], Tensor]


def gradient_of_calls(
    taps: tuple[Tap, ...], capture: Capture, deltas: Deltas, n_rows: int, shape: tuple[int, int]
) -> Gradient:
    """The gradient of one parameter: its rule at every call of every use, summed."""
    parts = []
    for tap in taps:
        rule = required_rule(tap.rule, tap.attribute)
        for source, delta in _calls(tap, capture, deltas, n_rows, shape):
            gradient = rule(tap.layer, source, delta)
            parts.append(gradient if tap.rows is None else gradient.rows(tap.rows.to(delta.device)))
    return join_positions(parts)


def _calls(tap: Tap, capture: Capture, deltas: Deltas, n_rows: int, shape: tuple[int, int]) -> Iterator[tuple[Any, Tensor]]:
    """The input and output gradient of every call, the batch first; of all calls as one where rows are gathered."""
    sources, n_calls = capture.inputs[tap.input], len(capture.outputs[tap.output])
    if any(source is None for source in sources):
        raise AdapterError(f"The input of {tap.attribute!r} is no tensor in this call; its rule does not hold here.")
    if tap.output in capture.owners:
        owners = capture.owners[tap.output]
        d_out = shape[0] if tap.rows is None else int(tap.rows.max()) + 1
        rows = [at_least_float32(deltas[tap.output, index]) for index in range(n_calls)]
        delta = owners.grouped(torch.cat(rows) if rows else torch.zeros(0, d_out, device=owners.sample.device))
        source = at_least_float32(torch.cat(sources)) if rows else torch.zeros(0, shape[1])
        yield owners.grouped(source.to(delta.device)).to(delta.dtype), delta
        return
    for index, source in enumerate(sources):
        delta = by_row(at_least_float32(deltas[tap.output, index]), n_rows)
        if len(delta) != n_rows:
            raise AdapterError(f"The layer of {tap.attribute!r} is called on {len(delta)} rows of {n_rows} samples.")
        yield _prepared(source, n_rows, delta.device), delta


def _prepared(source: Any, n_rows: int, device: torch.device) -> Any:
    """A rule's input, or all of a call's, with the batch first and at least in float32."""
    if isinstance(source, tuple):
        return tuple(_prepared(tensor, n_rows, device) for tensor in source)
    return by_row(at_least_float32(source), n_rows).to(device)


def gradient_of_uses(viewed: Viewed, capture: Capture, deltas: dict[int, Tensor]) -> Gradient:
    """The gradient of one parameter that is watched at operations: of every use, summed."""
    uses = capture.uses_of(viewed.view.stored)
    return join_positions([viewed.gradient(use.gradient(deltas[id(use)])) for use in uses])
