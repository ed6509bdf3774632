"""Padding that a matrix of token ids shows by itself, where no mask came with it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from param_features.errors import InputError
from param_features.params import Adapter
from param_features.problem.arguments import ModelInputs

Ids = Int[Tensor, "batch pos"]
Mask = Bool[Tensor, "batch pos"]


class Ends(NamedTuple):
    """The padding token at both ends of each row: True for the run of it that a row begins with, or ends with."""

    leading: Mask
    trailing: Mask


def padding_of(adapter: Adapter, ids: Ids, *, are_listed: bool = False) -> Mask | None:
    """True where ids are no padding, told by the tokenizer's padding token; None where nothing is padded, or it is not told.

    Runs of the token at the rows' ends on the tokenizer's side of padding are padding; of a token that serves nothing else,
    those on the other side too, where some are longer than one. Where it also begins or ends texts, the one of a run that
    the tokenizer itself sets there is text; so is a single one in front of rows.

    Args:
        adapter: Knows the tokenizer.
        ids: Rows of one length.
        are_listed: Whether the user listed each row's ids, so that a single one at an end may well be meant.

    Raises:
        InputError: A row is nothing but padding.
    """
    tokenizer = adapter.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None or not bool((ids[:, [0, -1]] == pad).any()):
        return None
    is_marking = pad in [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep")]
    ends, is_left = _ends(ids, pad), padding_side(tokenizer) == "left"
    own, other = (ends.leading, ends.trailing) if is_left else (ends.trailing, ends.leading)
    if are_listed and not _is_run(own):
        own = torch.zeros_like(own)
    if is_marking:
        text = adapter.to_ids("a")
        is_set = text[0] == pad if is_left else len(text) > 1 and text[-1] == pad
        if is_set:
            own = own & own.roll(-1 if is_left else 1, 1)
        elif is_left and not _is_run(own):
            return None
        own[:, -1 if is_left else 0] = False
        other = torch.zeros_like(other)
    mask = ~(own | other) if _is_run(other) else ~own
    if not bool(mask.any(1).all()):
        row = int((~mask.any(1)).nonzero()[0])
        raise InputError(f"Row {row} of the tokens is nothing but the padding token {pad}. Leave such rows out.")
    return None if bool(mask.all()) else mask


def _is_run(end: Mask) -> bool:
    """Whether some row has more than one there."""
    return bool((end.sum(1) > 1).any())


def padding_side(tokenizer: object) -> str:
    """On which side a tokenizer pads."""
    return getattr(tokenizer, "padding_side", "right")


def padding_notice(adapter: Adapter, tokens: Any, inputs: Any, data: ModelInputs) -> str | None:
    """What to tell the user about padding that came without a mask; None where there is nothing to say.

    Args:
        adapter: Reads the model.
        tokens: As the user gave them; None where `inputs` were given.
        inputs: The same.
        data: What was read of them.
    """
    given = tokens if inputs is None else inputs
    has_mask = isinstance(given, Mapping) and any(str(name).endswith("attention_mask") for name in given)
    are_lengths_told = isinstance(tokens, list) and (isinstance(tokens[0], str) or len(set(map(len, tokens))) > 1)
    if data.ids is None or has_mask or are_lengths_told:
        return None
    if data.mask is not None:
        share = float((~data.mask).double().mean())
        return (
            f"{share:.1%} of the positions are padding, as the tokenizer's padding token tells, and no samples. An "
            "attention_mask beside the tokens, as tokenizer(texts, padding=True) returns it, says so too."
        )
    pad = adapter.configured_padding
    if pad is None or adapter.tokenizer is not None or not _is_run(_ends(data.ids, pad).trailing):
        return None
    share = float(_ends(data.ids, pad).trailing.double().mean())
    return (
        f"{share:.1%} of the positions are runs of the model's padding token {pad} at the ends of rows, and are taken as "
        "text. If they are padding, give what the tokenizer returns, with its attention_mask, or tokenizer=."
    )


def _ends(ids: Ids, pad: int) -> Ends:
    is_pad = (ids == pad).long()
    return Ends(is_pad.cumprod(1).bool(), is_pad.flip(1).cumprod(1).flip(1).bool())
