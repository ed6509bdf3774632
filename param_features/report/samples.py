"""What a report shows of a model's inputs: text, images or vectors."""

import base64
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import NonFiniteError
from param_features.measure import Example
from param_features.problem import ModelInputs

_BEFORE, _AFTER = 24, 9
_MOST_NUMBERS = 256


@dataclass
class Vocabulary:
    """Strings by number, so that a page holds every token once.

    Attributes:
        strings: In order of first use.
    """

    strings: list[str] = field(default_factory=list)
    _index: dict[str, int] = field(default_factory=dict)

    def number(self, string: str) -> int:
        """The string's number; a new one where it has none."""
        if string not in self._index:
            self._index[string] = len(self.strings)
            self.strings.append(string)
        return self._index[string]


def kind_of(inputs: ModelInputs, *, per_position: bool) -> str:
    """How inputs are shown.

    As `"tokens"`, `"images"` (one or three channels), `"vectors"` (up to 256 numbers), or `"inputs"`: their number alone.
    """
    if per_position and inputs.tokens is not None:
        return "tokens"
    first = inputs.tensors[0]
    if first.dim() == 4 and first.shape[1] in (1, 3) and first.is_floating_point():
        return "images"
    is_short = first.dim() == 2 and first.shape[1] <= _MOST_NUMBERS
    return "vectors" if is_short and not first.is_complex() else "inputs"


def window(position: int) -> slice:
    """The positions that are shown around an activating one."""
    return slice(max(0, position - _BEFORE), position + _AFTER)


def text_example(example: Example, vocabulary: Vocabulary) -> dict[str, Any]:
    """A window around the activating token: token numbers, activations and where in the window the token is."""
    shown, following = window(example.position), example.next_token
    return {
        "row": example.row,
        "act": digits(example.activation),
        "at": example.position - shown.start,
        "tokens": [vocabulary.number(token) for token in example.tokens[shown]],
        "acts": [digits(value) for value in example.activations[shown]],
        "next": None if following is None else vocabulary.number(following),
    }


def input_example(
    example: Example, inputs: ModelInputs, outputs: Float[Tensor, "batch pos output"], kind: str
) -> dict[str, Any]:
    """The entry of one input: its values, and the model's output for it."""
    entry: dict[str, Any] = {"row": example.row, "act": digits(example.activation)}
    if outputs.shape[2] <= _MOST_NUMBERS:
        entry["output"] = [digits(value) for value in outputs[example.row, example.position].tolist()]
    first = inputs.tensors[0][example.row]
    if kind == "images":
        entry["image"] = image_bytes(first)
    elif kind == "vectors":
        entry["input"] = [digits(value) for value in first.tolist()]
    return entry


def image_bytes(image: Float[Tensor, "channel height width"]) -> dict[str, Any]:
    """The image as pixels from its smallest to its largest value: base64 of bytes in rows of red, green, blue."""
    low, high = image.min(), image.max()
    scaled = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8).expand(3, -1, -1)
    pixels = bytes(scaled.permute(1, 2, 0).flatten().tolist())
    return {"height": image.shape[1], "width": image.shape[2], "rgb": base64.b64encode(pixels).decode()}


def digits(value: float) -> float:
    """Round to four significant digits: more would only make the page longer.

    Raises:
        NonFiniteError: NaN or infinity, which a page would show as nothing.
    """
    if not math.isfinite(value):
        raise NonFiniteError(f"A number of the report is {value}, which would be shown as nothing. Check the inputs.")
    return float(f"{value:.4g}")
