"""Pairs of prompts, clean and corrupted: each clean prompt is compared with the output of its own partner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.machine import public
from param_features.params import Adapter
from param_features.problem.arguments import ModelInputs
from param_features.problem.divergence import Divergence, Sum
from param_features.problem.inputs import read_either
from param_features.problem.output import OutputInfo, inspect_output
from param_features.problem.positions import SamplePositions

_ACCEPTED = (
    "Give a list of (clean, corrupted) pairs of texts or of token ids, or pf.Pairs(clean=…, corrupted=…) with as many rows "
    "on either side"
)


@public
@dataclass(frozen=True, eq=False)
class Pairs:
    """Prompts that call for a behaviour, and partners that do not: `reference=pf.Pairs(clean, corrupted)`.

    A sample is the last real position of a clean prompt, where the answer is predicted (or a whole input, for modules that
    take no tokens). It is compared with the model's output at the last real position of its own corrupted partner, and with
    no other. Partners may differ in length.

    Attributes:
        clean: Token ids [pair, pos], texts, rows of ids, or what a tokenizer returns, whose `attention_mask` is heeded; or
            for modules that take no tokens a tensor, or a tuple or dict of arguments.
        corrupted: The partners, in the same order.
    """

    clean: Any
    corrupted: Any


@dataclass(frozen=True)
class PairInputs:
    """Pairs as the model takes them, row by row.

    Attributes:
        clean: What the samples are.
        corrupted: What their references come from.
    """

    clean: ModelInputs
    corrupted: ModelInputs

    def located(self, adapter: Adapter, positions: SamplePositions) -> "PairInputs":
        """The pairs, and which positions of their outputs are samples."""
        return PairInputs(positions.located(adapter, self.clean), positions.located(adapter, self.corrupted))


def as_pairs(reference: Any) -> Pairs | None:
    """Read the pairs in what the user gave as `reference=`; None if it is something else.

    Raises:
        InputError: A sequence holds something that is no pair; gives its place.
    """
    if isinstance(reference, Pairs):
        return reference
    if isinstance(reference, str | bytes | Tensor | Mapping) or not isinstance(reference, Sequence):
        return None
    if len(reference) == 2 and all(isinstance(side, Tensor) and side.dim() == 2 for side in reference):
        return Pairs(*reference)
    if not len(reference):
        raise InputError(f"reference holds no pairs. {_ACCEPTED}.")
    for place, pair in enumerate(reference):
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(_is_row, pair)):
            raise InputError(f"reference[{place}] is {_short(pair)}, which is no pair of prompts. {_ACCEPTED}.")
    return Pairs([clean for clean, _ in reference], [corrupted for _, corrupted in reference])


def _is_row(row: Any) -> bool:
    return isinstance(row, str | list | tuple) or (isinstance(row, Tensor) and row.dim() == 1)


def _short(value: Any) -> str:
    shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    return shown if len(shown) < 80 else shown[:77] + "…"


def read_pairs(adapter: Adapter, pairs: Pairs, tokens: Any, inputs: Any) -> PairInputs:
    """Read both sides as the model takes them.

    Raises:
        InputError: Tokens or inputs are given as well; a side cannot be read; the sides differ in number, in kind or in the
            shape of their outputs; or a prompt is its own partner.
    """
    if tokens is not None or inputs is not None:
        argument = "tokens" if tokens is not None else "inputs"
        raise InputError(
            f"Got both {argument}= and pairs of prompts as reference=. The clean prompts are what features are fitted for: "
            f"leave {argument}= out, or give it as background=."
        )
    clean, corrupted = (_read_side(adapter, name, getattr(pairs, name)) for name in ("clean", "corrupted"))
    if len(clean) != len(corrupted):
        raise InputError(f"Got {len(clean)} clean and {len(corrupted)} corrupted prompts. {_ACCEPTED}.")
    same = [row for row in range(len(clean)) if _is_same(clean.rows([row]), corrupted.rows([row]))]
    if same:
        raise InputError(
            f"{len(same)} of {len(clean)} pairs are twice the same prompt, the first of them pair {same[0]}: nothing "
            "differs there. Leave them out."
        )
    return PairInputs(clean, corrupted)


def _read_side(adapter: Adapter, name: str, side: Any) -> ModelInputs:
    try:
        return read_either(adapter, side)
    except InputError as error:
        raise InputError(f"The {name} prompts of reference=: {error}") from error


def _is_same(left: ModelInputs, right: ModelInputs) -> bool:
    if (
        left.tokens is not None
        and right.tokens is not None
        and len(left.tensors) == len(right.tensors) == 1 + bool(left.kwargs)
    ):
        return left.token_rows == right.token_rows
    sides = list(zip(left.tensors, right.tensors, strict=False))
    return len(left.tensors) == len(right.tensors) and all(torch.equal(a, b) for a, b in sides)


def check_pairs(adapter: Adapter, pairs: PairInputs, output: OutputInfo, divergence: Divergence, method: str) -> None:
    """Refuse pairs that no gradient would heed, or whose outputs cannot be compared.

    Raises:
        SettingError: The divergence's gradient, or the method, does not depend on the reference.
        InputError: The two sides' outputs differ in shape.
    """
    if isinstance(divergence, Sum):
        raise SettingError(
            "reference=pairs with divergence='sum': its gradient is the same whatever the reference, so that the corrupted "
            "prompts would change nothing. Use 'kl', 'se' or your own function of (output, reference)."
        )
    if method == "hessian":
        raise SettingError(
            "reference=pairs with method='hessian', which compares every output with itself. Use method='l3d' for pairs."
        )
    corrupted = inspect_output(adapter, pairs.corrupted).sampled(divergence, "all")
    if (corrupted.per_position, corrupted.d_output) != (output.per_position, output.d_output):
        raise InputError(
            f"Outputs have shape {output.shape} for clean prompts and {corrupted.shape} for corrupted ones. Partners' "
            "outputs are compared number by number: give inputs of one kind."
        )
