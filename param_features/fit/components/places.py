"""Whose positions a matrix is applied at: which are padding, and whether they are those of the outputs."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from jaxtyping import Bool
from torch import Tensor

from param_features.errors import AdapterError, SettingError
from param_features.gradients import GradientEngine
from param_features.problem import ModelInputs

Widths = Mapping[str, int]
"""At how many positions of a row each matrix is applied."""


def encoders_own(inputs: ModelInputs, widths: Widths, widths_of: Callable[[ModelInputs], Widths]) -> frozenset[str]:
    """The matrices that are applied at the positions of an encoder beside a decoder.

    Cost: where numbers of positions do not tell, a pass of one row whose decoder has one token less.

    Args:
        inputs: What the model was run on.
        widths: What it showed.
        widths_of: Runs the model on other inputs.
    """
    tokens = inputs.decoder_tokens
    if tokens is None:
        return frozenset()
    n_pos = tokens.shape[1]
    others = {name for name, width in widths.items() if width not in (1, n_pos)}
    if n_pos == 1:
        return frozenset(others)
    cut = {
        name: value[:, :-1]
        for name, value in inputs.kwargs.items()
        if name.startswith("decoder") and isinstance(value, Tensor) and value.shape[1:2] == (n_pos,)
    }
    found = widths_of(replace(inputs, kwargs=inputs.kwargs | cut, mask=None, samples=None).rows(slice(0, 1)))
    return frozenset(others | {name for name, width in found.items() if width == n_pos})


def real_positions(
    engine: GradientEngine, inputs: ModelInputs, widths: Widths, of_encoder: Collection[str]
) -> dict[str, Bool[Tensor, "row _pos"] | None]:
    """Which positions of each matrix are no padding; None for all.

    Raises:
        AdapterError: Rows are padded, and which positions of a matrix are padding is not known.
    """
    own, of_other = _mask(engine, inputs), _padded(_encoder_mask(inputs))
    found = {}
    for name, width in widths.items():
        mask = of_other if name in of_encoder else own
        if mask is not None and width not in (1, mask.shape[1]):
            raise AdapterError(
                f"{name!r} is applied at {width} positions of a row, the inputs are padded at {mask.shape[1]}, and which of "
                "its positions are padding is not known. Choose other parameters, or cut the rows to one length."
            )
        found[name] = None if width == 1 else mask
    return found


def check_same_positions(widths: Widths, aligned: Collection[str]) -> None:
    """Refuse one network for matrices that are applied at different positions.

    Args:
        widths: At how many positions each is applied.
        aligned: Those whose positions are the outputs'.

    Raises:
        SettingError: They differ.
    """
    others = [name for name, width in widths.items() if width != next(iter(widths.values()))]
    others += [name for name in widths if aligned and name not in aligned]
    if others:
        raise SettingError(
            f"importance='model' reads the inputs of all matrices at the same position, and {others[0]!r} is applied at "
            "other positions than the first. Take importance='site', or fewer matrices."
        )


def _mask(engine: GradientEngine, inputs: ModelInputs) -> Bool[Tensor, "row pos"] | None:
    """Which of the outputs' positions, or of an input's tokens, are no padding."""
    given = inputs.kwargs.get("attention_mask")
    if inputs.ids is not None or not isinstance(given, Tensor):
        return _padded(inputs.mask)
    given = _padded(given.bool()) if given.dim() == 2 else None
    if given is None or inputs.samples is None:
        return given
    of_output = engine.adapter.output_mask(given, inputs.samples.shape[1])
    return given if of_output is None else _padded(of_output)


def _encoder_mask(inputs: ModelInputs) -> Bool[Tensor, "row pos"] | None:
    named = ((name, value) for name, value in inputs.kwargs.items() if isinstance(value, Tensor) and value.dim() == 2)
    return next((mask.bool() for name, mask in named if name in ("attention_mask", "one_zero_attention_mask")), None)


def _padded(mask: Tensor | None) -> Tensor | None:
    return None if mask is None or bool(mask.all()) else mask
