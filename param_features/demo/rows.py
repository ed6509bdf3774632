"""Rows of tokens made of stories, and what the grammar that wrote them knows about each position.

A row begins with `<bos>`; whole stories follow, each closed by the end-of-story token, and the row is cut at `n_ctx`. Row i
does not depend on `n`, and a longer `n_ctx` only adds to its end, so separate calls with the same arguments line up.

The rows are shipped with the package, 4,096 of seed 0 and 512 of each of the seeds 1 to 9, 96 tokens long. They were written
by `benchmarks.demo_data`, in a checkout of the repository, which makes any number more. None of them was trained on.

The file holds two bytes for each position: the token, and the kind of place that it is. A kind is what the grammar knows
there: which rules determine the next token, its surprisal and its entropy. The grammar has 75 kinds.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from torch import Tensor

from param_features.demo.grammar import RULES
from param_features.demo.vocabulary import EOS, read_vocabulary
from param_features.errors import SettingError
from param_features.machine import public

ROWS_FILE = Path(__file__).with_name("data") / "rows.npz"


class ShippedRows(NamedTuple):
    """The rows in the package, those of seed 0 first, then those of seed 1 and so on.

    Attributes:
        n_rows: How many rows there are of each seed.
        tokens: Token ids.
        kinds: The kind of each place, an index into the three tables.
        rules: For each kind which of `RULES` determine the next token.
        surprisal: For each kind -log p of the next token, in nats.
        entropy: For each kind the mean of -log p over all tokens that may come next, in nats.
    """

    n_rows: Int[Tensor, " seed"]
    tokens: UInt8[Tensor, "row pos"]
    kinds: UInt8[Tensor, "row pos"]
    rules: Bool[Tensor, "kind rule"]
    surprisal: Float32[Tensor, " kind"]
    entropy: Float32[Tensor, " kind"]


@cache
def read_rows() -> ShippedRows:
    """The shipped rows; read once, so do not change the tensors."""
    with np.load(ROWS_FILE, allow_pickle=False) as arrays:
        return ShippedRows(**{name: torch.from_numpy(arrays[name]) for name in ShippedRows._fields})


@public
def tokens(n: int, *, n_ctx: int = 64, seed: int = 0) -> Int[Tensor, "n n_ctx"]:
    """Rows of story tokens for the demo model; none of them was trained on.

    The rows come from random streams of their own that the training script never reads. Stories have about 23 nats
    each, so the same one is rarely told twice: of 2,048 held-out stories one also came up in training.

    Args:
        n: Number of rows; the package has 4,096 of seed 0 and 512 of each other seed.
        n_ctx: Tokens per row, at most 96; the demo model reads at most 64.
        seed: Which rows, from 0 to 9; each seed gives others.

    Returns:
        Token ids; column 0 is `<bos>`.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1, or the package has no such rows.
    """
    return read_rows().tokens[_places(n, n_ctx, seed)].long()


@public
def stories(n: int, seed: int = 0) -> list[str]:
    """Stories as text; story i is the first one of row i of `tokens(n, seed=seed)`.

    About a quarter of them are longer than the 64 tokens that the demo model reads; rows cut them, and so does
    TransformerLens' `to_tokens`, in silence. As texts they are refused.

    Args:
        n: Number of stories; the package has 4,096 of seed 0 and 512 of each other seed.
        seed: Which stories, from 0 to 9.

    Returns:
        The texts, without special tokens.

    Raises:
        SettingError: `n` is negative, or the package has no such stories.
    """
    spelling = list(read_vocabulary())
    rows = ([spelling[index] for index in row] for row in tokens(n, n_ctx=read_rows().tokens.shape[1], seed=seed).tolist())
    return ["".join(row[1 : row.index(EOS)]) for row in rows]


@public
def rules(n: int, *, n_ctx: int = 64, seed: int = 0) -> dict[str, Bool[Tensor, "n n_ctx"]]:
    """Where each rule of the grammar determines the next token, for the rows of `tokens` with the same arguments.

    Position p is marked when the rule determines token p + 1: p is where the model has to apply the rule, and where a
    feature that carries the rule should be active. The last column speaks of the token after the cut. A rule determines
    a token when it leaves one possibility, or one small class (a boy's name; "round" or "bouncy" for a ball). Where a
    sentence may go on in other ways too ("She" or "Lily"), the marks are those of the token that did come.

    Args:
        n: Number of rows.
        n_ctx: Tokens per row.
        seed: Which rows.

    Returns:
        One mask per name in `RULES`, in that order.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1, or the package has no such rows.
    """
    kinds = _kinds(n, n_ctx, seed)
    return {name: marks[kinds] for name, marks in zip(RULES, read_rows().rules.T, strict=True)}


@public
def surprisal(n: int, *, n_ctx: int = 64, seed: int = 0) -> Float[Tensor, "n n_ctx"]:
    """True -log p of the next token given the row so far, for the rows of `tokens` with the same arguments.

    A model's loss on these rows minus their mean surprisal (last column left out) estimates its excess over the grammar
    without the noise of which stories were drawn.

    Args:
        n: Number of rows.
        n_ctx: Tokens per row.
        seed: Which rows.

    Returns:
        Nats, at least 0; entry [i, p] belongs to token p + 1 of row i, in the last column the token after the cut.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1, or the package has no such rows.
    """
    return read_rows().surprisal[_kinds(n, n_ctx, seed)]


@public
def entropy(n: int, *, n_ctx: int = 64, seed: int = 0) -> Float[Tensor, "n n_ctx"]:
    """True entropy of the next token given the row so far, for the rows of `tokens` with the same arguments.

    This is the least cross-entropy that any model can reach at each position, averaged over what might come next.

    Args:
        n: Number of rows.
        n_ctx: Tokens per row.
        seed: Which rows.

    Returns:
        Nats, at least 0; entry [i, p] belongs to token p + 1 of row i, in the last column the token after the cut.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1, or the package has no such rows.
    """
    return read_rows().entropy[_kinds(n, n_ctx, seed)]


def check_table_size(n: int, n_ctx: int) -> None:
    """Refuse sizes that make no table.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    if n < 0:
        raise SettingError(f"n={n} rows. Any number from 0 up is accepted. Pass for example n=512.")
    if n_ctx < 1:
        raise SettingError(f"n_ctx={n_ctx} tokens per row. Any number from 1 up is accepted. The demo model reads 64.")


def _kinds(n: int, n_ctx: int, seed: int) -> Int[Tensor, "n n_ctx"]:
    """The kinds of the places of the first `n` rows of a seed, as indices."""
    return read_rows().kinds[_places(n, n_ctx, seed)].long()


def _places(n: int, n_ctx: int, seed: int) -> tuple[slice, slice]:
    """Where the first `n` rows of a seed and their first `n_ctx` tokens lie among the shipped ones.

    Raises:
        SettingError: The sizes make no table, or the package has no such rows.
    """
    check_table_size(n, n_ctx)
    shipped = read_rows()
    n_rows, width = shipped.n_rows.tolist(), shipped.tokens.shape[1]
    if not (0 <= seed < len(n_rows) and n <= n_rows[seed] and n_ctx <= width):
        raise SettingError(
            f"n={n} rows of n_ctx={n_ctx} tokens of seed={seed} are not in the package. It has {n_rows[0]} rows of seed 0 "
            f"and {n_rows[1]} of each of the seeds 1 to {len(n_rows) - 1}, of {width} tokens. Ask for those, or make others "
            f"in a checkout of the repository: python -m benchmarks.demo_data rows.safetensors --n {n} --n-ctx {n_ctx} "
            f"--seed {seed}"
        )
    first = sum(n_rows[:seed])
    return slice(first, first + n), slice(n_ctx)
