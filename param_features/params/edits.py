"""Adding to stored tensors for a while, and giving back every bit."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.params.layout import Layout


def overwrite(stored: Tensor, values: Tensor) -> None:
    """Give a stored tensor other values in place, and let autocast forget the casts that it keeps of its old ones."""
    with torch.inference_mode(stored.is_inference()), torch.no_grad():
        stored.copy_(values)
    torch.clear_autocast_cache()


class Addition(NamedTuple):
    """What is added to a named tensor, and where that lies.

    Attributes:
        stored: The model's own Parameter.
        layout: How the named tensor lies in it.
        delta: What is added, of the named tensor's shape.
    """

    stored: Tensor
    layout: Layout
    delta: Float[Tensor, "*shape"]


@dataclass(eq=False)
class _Edited:
    """A stored tensor while blocks add to it: its own values, and what each block adds.

    Kept for the tensor and not for a block, so that blocks may end in any order.
    """

    stored: Tensor
    values: Tensor
    parts: dict[object, list[Addition]] = field(default_factory=dict)

    def write(self) -> None:
        """Its own values, bit for bit, plus every part that still lasts, summed in float32 or better."""
        changed = self.values
        if self.parts:
            changed = changed.to(torch.promote_types(changed.dtype, torch.float32))
        for part in (part for parts in self.parts.values() for part in parts):
            named = part.layout.read(changed)
            changed = part.layout.write(named + part.delta.to(named), changed)
        overwrite(self.stored, changed)


_EDITED: dict[int, _Edited] = {}
"""By the stored tensor's id while a block adds to it; the entry holds the tensor, so that no other gets its id."""


@contextmanager
def added(additions: Iterable[Addition]) -> Iterator[None]:
    """Add to stored tensors in place while a block runs.

    Blocks may be nested and may end in any order: each takes its own parts away, and the last restores every bit. Whatever
    else changes these tensors meanwhile, such as training, is undone with it. Not for several threads on one model.

    Cost: a copy of the stored tensors.
    """
    mark, touched = object(), []
    try:
        for addition in additions:
            touched.append(addition.stored)
            edited = _entry(addition.stored)
            edited.parts.setdefault(mark, []).append(addition)
            edited.write()
        yield
    finally:
        try:
            _take_away(mark, touched)
        except BaseException:
            _take_away(mark, touched)  # a Ctrl-C that fell into the restoration: finish it, then let it out
            raise


def is_edited(stored: Tensor) -> bool:
    """Whether a block is adding to the tensor at this moment."""
    edited = _EDITED.get(id(stored))
    return edited is not None and bool(edited.parts)


def own_values(stored: Tensor) -> Tensor:
    """The tensor's values without what blocks add to it at this moment; not a copy."""
    return _EDITED[id(stored)].values if is_edited(stored) else stored


_HOOKED: list[object] = []
"""A mark for every block that adds to the outputs of layers instead."""
_STAND_INS: list[object] = []
"""A mark for every block in which other tensors stand in the place of parameters, as that block means them to."""


@contextmanager
def hooked() -> Iterator[None]:
    """Say that outputs are added to while a block runs."""
    with _marked(_HOOKED):
        yield


@contextmanager
def stand_ins() -> Iterator[None]:
    """Say that parameters hold what this library puts there while a block runs: nobody is to be told of another model."""
    with _marked(_STAND_INS):
        yield


def has_stand_ins() -> bool:
    """Whether a block of `stand_ins` is running."""
    return bool(_STAND_INS)


def is_any_edited() -> bool:
    """Whether a block adds to any tensor, or to any layer's output, at this moment."""
    return bool(_HOOKED) or any(edited.parts for edited in _EDITED.values())


@contextmanager
def _marked(marks: list[object]) -> Iterator[None]:
    mark = object()
    marks.append(mark)
    try:
        yield
    finally:
        marks.remove(mark)


def _entry(stored: Tensor) -> _Edited:
    """The tensor's entry, with its present values where nothing adds to it yet."""
    if not is_edited(stored):
        with torch.inference_mode(False):
            _EDITED[id(stored)] = _Edited(stored, stored.detach().clone())
    return _EDITED[id(stored)]


def _take_away(mark: object, touched: list[Tensor]) -> None:
    for stored in touched:
        edited = _EDITED.get(id(stored))
        if edited is None:
            continue
        edited.parts.pop(mark, None)
        edited.write()
        if not edited.parts:
            _EDITED.pop(id(stored), None)
