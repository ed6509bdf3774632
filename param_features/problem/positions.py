"""`positions=`: which positions of an output [batch pos d_output] are samples."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from param_features.errors import InputError, SettingError, nearest
from param_features.params import Adapter, held_still
from param_features.problem.arguments import ModelInputs

NAMES = ("all", "last")


@dataclass(frozen=True, eq=False)
class SamplePositions:
    """Which positions of an output are samples, and what is known of those positions.

    Attributes:
        given: `"all"` that are real; or some, counted among a row's real ones: `"last"`, an integer, a slice; or truth
            values [batch, pos]; or a function of the tokens [batch, pos] to such truth values.
        have_tokens: Whether the tokens of the inputs stand at these positions.
    """

    given: Any = "all"
    have_tokens: bool = True

    @property
    def elsewhere(self) -> "SamplePositions":
        """What holds for other inputs than those at hand: truth values speak of these alone."""
        return replace(self, given="all") if isinstance(self.given, Tensor) else self

    def located(self, adapter: Adapter, inputs: ModelInputs) -> ModelInputs:
        """The inputs, and which positions of their outputs are samples.

        Cost: where no tokens stand at the positions, a forward pass of one row, which tells how many there are.

        Raises:
            InputError: Truth values are of another shape, or which positions are padding is not known.
        """
        ids = inputs.ids if self.have_tokens else None
        if ids is None:
            is_real = _real_positions(adapter, inputs, self.given)
        elif isinstance(self.given, str) and self.given == "all":
            return replace(inputs, samples=None)
        else:
            is_real = torch.ones_like(ids, dtype=torch.bool) if inputs.mask is None else inputs.mask
        return replace(inputs, samples=is_real & self._chosen(is_real, ids))

    def _chosen(self, is_real: Bool[Tensor, "batch pos"], ids: Tensor | None) -> Bool[Tensor, "batch pos"]:
        if isinstance(self.given, Tensor):
            return _checked(self.given, is_real, "positions")
        if callable(self.given):
            if ids is None:
                raise InputError(
                    "positions= is a function of the tokens, and no tokens of the inputs stand at the output's positions. "
                    f"Give truth values of shape {list(is_real.shape)}, an integer, a slice or 'last'."
                )
            return _checked(self.given(ids), is_real, "positions= of the tokens")
        return is_real if self.given == "all" else _picked(is_real, _slice(self.given))


def read_positions(given: Any) -> Any:
    """What the user gave as `positions=`, refused where it is none of the accepted kinds.

    Raises:
        SettingError: It is not.
    """
    is_mask = isinstance(given, Tensor) and given.dtype == torch.bool and given.dim() == 2
    is_number = isinstance(given, int) and not isinstance(given, bool)
    is_name = isinstance(given, str) and given in NAMES
    if is_mask or is_number or is_name or callable(given) or (isinstance(given, slice) and _is_usable(given)):
        return given
    what = f"{given.dtype} of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
    near = f"; nearest: {nearest(given, NAMES)}" if isinstance(given, str) else ""
    raise SettingError(
        f"positions={what}. Accepted: 'all', 'last', an integer, a slice, truth values [batch, pos], or a function of the "
        f"tokens to truth values{near}."
    )


def position_record(given: Any, examples: ModelInputs) -> Any:
    """What was given as `positions=`, as the record of a fit holds it: JSON.

    Truth values are kept for the examples alone, and of a function its name.
    """
    if isinstance(given, slice):
        return {"slice": [given.start, given.stop, given.step]}
    if isinstance(given, Tensor):
        assert examples.samples is not None, "truth values mark the samples of the data that they were given with"
        return {"mask": ["".join(map(str, row)) for row in examples.samples.long().tolist()]}
    return {"function": getattr(given, "__name__", type(given).__name__)} if callable(given) else given


def is_position_record(record: Any) -> bool:
    """Whether `position_record` could have written something."""
    if not isinstance(record, dict):
        return record in NAMES if isinstance(record, str) else isinstance(record, int) and not isinstance(record, bool)
    match record:
        case {"slice": [start, stop, step], **others}:
            return not others and _is_usable(slice(start, stop, step))
        case {"mask": [str(), *_] as rows, **others}:
            return not others and all(isinstance(row, str) and row and not set(row) - {"0", "1"} for row in rows)
        case {"function": str(), **others}:
            return not others
    return False


def recorded_positions(record: Any, function: Any = None) -> Any:
    """What was given as `positions=`, from a record.

    Args:
        record: As `position_record` writes it.
        function: The function that was given, where it was one.

    Raises:
        SettingError: The record names a function, and none is given; or one is given and the record is of something else.
    """
    name = record.get("function") if isinstance(record, dict) else None
    if (name is None) != (function is None):
        raise SettingError(
            f"The samples were chosen by positions={name}, which is code and was not saved. Pass it again: positions={name}."
            if function is None
            else f"positions= is given, and the samples were chosen by {record!r}, which was saved. Leave it out."
        )
    if not isinstance(record, dict) or function is not None:
        return record if function is None else function
    if "slice" in record:
        return slice(*record["slice"])
    width = max(map(len, record["mask"]))
    return torch.tensor([[mark == "1" for mark in row.ljust(width, "0")] for row in record["mask"]])


def _is_usable(given: slice) -> bool:
    numbers = (given.start, given.stop, given.step)
    return given.step != 0 and all(number is None or isinstance(number, int) for number in numbers)


def _slice(given: str | int | slice) -> slice:
    if isinstance(given, slice):
        return given
    first = -1 if isinstance(given, str) else given
    return slice(first, first + 1 or None)


def _picked(is_real: Bool[Tensor, "batch pos"], wanted: slice) -> Bool[Tensor, "batch pos"]:
    """Those of the real positions that a slice of each row's real ones has."""
    n_pos, lengths = is_real.shape[1], is_real.sum(1).cpu()
    table = torch.zeros(n_pos + 1, n_pos, dtype=torch.bool)
    for length in lengths.unique().tolist():
        table[length, list(range(*wanted.indices(length)))] = True
    number = (is_real.long().cumsum(1) - 1).clamp(min=0)
    return table[lengths].to(is_real.device).gather(1, number)


def _checked(values: Any, is_real: Bool[Tensor, "batch pos"], title: str) -> Bool[Tensor, "batch pos"]:
    if not isinstance(values, Tensor) or values.dtype != torch.bool or values.shape != is_real.shape:
        what = f"{values.dtype} of shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"{title} is {what}. These outputs need truth values of shape {list(is_real.shape)}.")
    return values.to(is_real.device)


@torch.no_grad()
def _real_positions(adapter: Adapter, inputs: ModelInputs, given: Any) -> Bool[Tensor, "batch pos"]:
    """Which positions of the outputs are not padding, where no tokens stand at them.

    Raises:
        InputError: The inputs are padded, and the model does not say which positions of its outputs are.
    """
    first = inputs.rows(slice(0, 1))
    with held_still(adapter.module):
        n_pos = adapter.run(*first.args, **first.kwargs).shape[1]
    everywhere = torch.ones(len(inputs), n_pos, dtype=torch.bool, device=inputs.tensors[0].device)
    attention_mask = inputs.kwargs.get("attention_mask", inputs.mask)
    if not isinstance(attention_mask, Tensor) or bool(attention_mask.bool().all()) or isinstance(given, Tensor):
        return everywhere
    is_real = adapter.output_mask(attention_mask, n_pos)
    if is_real is None:
        raise InputError(
            f"The inputs are padded, and no tokens of theirs stand at the output's {n_pos} positions, so that it is not "
            f"known which of these are padding. Give positions= truth values of shape [{len(inputs)}, {n_pos}]; or a "
            "decoder's tokens as decoder_input_ids; or positions=slice(…) in place of an output= that cuts positions off."
        )
    return is_real
