"""Rows of tokens made of stories, and what the grammar knows about each position.

Everything here is a function of (n, n_ctx, seed) alone, so that separate calls with the same arguments line up. A row
begins with `BOS`; whole stories follow, each closed by the end-of-story token, and the row is cut at `n_ctx`. Row i
does not depend on `n`, and a longer `n_ctx` only adds to its end.

Random streams are named by strings: users draw from "held-out/<seed>/<row>", the training script from
"train/<seed>/<row>". No seed that a user passes reaches a training row.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.demo.grammar import RULES, tell
from param_features.demo.teller import Story
from param_features.demo.vocabulary import BOS, read_vocabulary
from param_features.errors import SettingError

HELD_OUT, TRAIN = "held-out", "train"


class Row(NamedTuple):
    """One row; every entry after `tokens` describes the token that comes next."""

    tokens: list[str]
    next_rules: list[frozenset[str]]
    next_surprisal: list[float]
    next_entropy: list[float]


def tokens(n: int, *, n_ctx: int = 64, seed: int = 0) -> Int[Tensor, "n n_ctx"]:
    """Rows of story tokens for the demo model; none of them was trained on.

    The rows come from random streams of their own that the training script never reads. Stories have about 23 nats
    each, so the same one is rarely told twice: of 2,048 held-out stories one also came up in training.
    Cost: about 0.3 ms a row.

    Args:
        n: Number of rows.
        n_ctx: Tokens per row; the demo model reads at most 64.
        seed: Which rows; each seed gives others.

    Returns:
        Token ids; column 0 is `<bos>`.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    ids = read_vocabulary()
    return _table(n, n_ctx, seed, torch.int64, lambda row: [ids[token] for token in row.tokens])


def stories(n: int, seed: int = 0) -> list[str]:
    """Stories as text; story i is the first one of row i of `tokens(n, seed=seed)`.

    About a quarter of them are longer than the 64 tokens that the demo model reads; rows cut them, and so does
    TransformerLens' `to_tokens`.

    Args:
        n: Number of stories.
        seed: Which stories.

    Returns:
        The texts, without special tokens.

    Raises:
        SettingError: `n` is negative.
    """
    _check(n, n_ctx=1)
    return [tell(_stream(HELD_OUT, seed, index)).text for index in range(n)]


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
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    _check(n, n_ctx)
    masks = {name: torch.zeros(n, n_ctx, dtype=torch.bool) for name in RULES}
    for index, row in enumerate(tell_rows(n, n_ctx, seed=seed)):
        for position, applied in enumerate(row.next_rules):
            for name in applied:
                masks[name][index, position] = True
    return masks


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
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    return _table(n, n_ctx, seed, torch.float32, lambda row: row.next_surprisal)


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
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    return _table(n, n_ctx, seed, torch.float32, lambda row: row.next_entropy)


def tell_rows(n: int, n_ctx: int, *, seed: int, split: str = HELD_OUT, first: int = 0) -> Iterator[Row]:
    """Tell rows `first` to `first + n` of a split.

    Args:
        n: Number of rows.
        n_ctx: Tokens per row.
        seed: Which rows.
        split: `HELD_OUT` or `TRAIN`.
        first: Index of the first row.

    Yields:
        One row at a time.
    """
    for index in range(first, first + n):
        yield _join(_story_stream(_stream(split, seed, index)), n_ctx)


def _join(told: Iterator[Story], n_ctx: int) -> Row:
    """Put stories one after the other until the token after the last position is known."""
    row = Row([BOS], [], [], [])
    while len(row.next_rules) < n_ctx:
        story = next(told)
        row.tokens.extend(story.tokens)
        row.next_rules.extend(story.rules)
        row.next_surprisal.extend(story.surprisal)
        row.next_entropy.extend(story.entropy)
    return Row(row.tokens[:n_ctx], row.next_rules[:n_ctx], row.next_surprisal[:n_ctx], row.next_entropy[:n_ctx])


def _table(n: int, n_ctx: int, seed: int, dtype: torch.dtype, entries: Callable[[Row], list]) -> Tensor:
    """One list of entries for each row, as a tensor."""
    _check(n, n_ctx)
    listed = [entries(row) for row in tell_rows(n, n_ctx, seed=seed)]
    return torch.tensor(listed, dtype=dtype).reshape(n, n_ctx)


def _story_stream(rng: random.Random) -> Iterator[Story]:
    while True:
        yield tell(rng)


def _stream(split: str, seed: int, index: int) -> random.Random:
    return random.Random(f"{split}/{seed}/{index}")


def _check(n: int, n_ctx: int) -> None:
    """Refuse sizes that make no table.

    Raises:
        SettingError: `n` is negative or `n_ctx` is below 1.
    """
    if n < 0:
        raise SettingError(f"n={n} rows. Any number from 0 up is accepted. Pass for example n=512.")
    if n_ctx < 1:
        raise SettingError(f"n_ctx={n_ctx} tokens per row. Any number from 1 up is accepted. The demo model reads 64.")
