"""Rows of tokens made of stories, as many as are wanted, and what the grammar knows about each position.

`pf.demo` has functions of the same names and arguments, which read some of these rows from a file; their docstrings say in
full what each table is. Everything here is a function of (n, n_ctx, seed) alone, so that separate calls with the same
arguments line up. A row begins with `BOS`; whole stories follow, each closed by the end-of-story token, and the row is cut
at `n_ctx`. Row i does not depend on `n`, and a longer `n_ctx` only adds to its end.

Random streams are named by strings: users draw from "held-out/<seed>/<row>", the training script from
"train/<seed>/<row>". No seed that a user passes reaches a training row.
"""

import random
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks.demo_data.grammar import tell
from benchmarks.demo_data.teller import Story
from param_features.demo.grammar import RULES
from param_features.demo.rows import check_table_size
from param_features.demo.vocabulary import BOS, read_vocabulary

HELD_OUT, TRAIN = "held-out", "train"


class Row(NamedTuple):
    """One row; every entry after `tokens` describes the token that comes next."""

    tokens: list[str]
    next_rules: list[frozenset[str]]
    next_surprisal: list[float]
    next_entropy: list[float]


def tokens(n: int, *, n_ctx: int = 64, seed: int = 0) -> Int[Tensor, "n n_ctx"]:
    """Rows of token ids; column 0 is `<bos>`, and none of the rows was trained on.

    Cost: about 0.3 ms a row.
    """
    ids = read_vocabulary()
    return _table(n, n_ctx, seed, torch.int64, lambda row: [ids[token] for token in row.tokens])


def stories(n: int, seed: int = 0) -> list[str]:
    """Stories as text; story i is the first one of row i of `tokens(n, seed=seed)`."""
    check_table_size(n, n_ctx=1)
    return [tell(_stream(HELD_OUT, seed, index)).text for index in range(n)]


def rules(n: int, *, n_ctx: int = 64, seed: int = 0) -> dict[str, Bool[Tensor, "n n_ctx"]]:
    """For each rule in `RULES` a mask of the positions p at which it determines token p + 1."""
    check_table_size(n, n_ctx)
    masks = {name: torch.zeros(n, n_ctx, dtype=torch.bool) for name in RULES}
    for index, row in enumerate(tell_rows(n, n_ctx, seed=seed)):
        for position, applied in enumerate(row.next_rules):
            for name in applied:
                masks[name][index, position] = True
    return masks


def surprisal(n: int, *, n_ctx: int = 64, seed: int = 0) -> Float[Tensor, "n n_ctx"]:
    """True -log p of the next token given the row so far, in nats."""
    return _table(n, n_ctx, seed, torch.float32, lambda row: row.next_surprisal)


def entropy(n: int, *, n_ctx: int = 64, seed: int = 0) -> Float[Tensor, "n n_ctx"]:
    """True entropy of the next token given the row so far, in nats."""
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


def _join(stories_in_order: Iterator[Story], n_ctx: int) -> Row:
    """Put stories one after the other until the token after the last position is known."""
    row = Row([BOS], [], [], [])
    while len(row.next_rules) < n_ctx:
        story = next(stories_in_order)
        row.tokens.extend(story.tokens)
        row.next_rules.extend(story.rules)
        row.next_surprisal.extend(story.surprisal)
        row.next_entropy.extend(story.entropy)
    return Row(row.tokens[:n_ctx], row.next_rules[:n_ctx], row.next_surprisal[:n_ctx], row.next_entropy[:n_ctx])


def _table(n: int, n_ctx: int, seed: int, dtype: torch.dtype, entries: Callable[[Row], list]) -> Tensor:
    """One list of entries for each row, as a tensor."""
    check_table_size(n, n_ctx)
    listed = [entries(row) for row in tell_rows(n, n_ctx, seed=seed)]
    return torch.tensor(listed, dtype=dtype).reshape(n, n_ctx)


def _story_stream(rng: random.Random) -> Iterator[Story]:
    while True:
        yield tell(rng)


def _stream(split: str, seed: int, index: int) -> random.Random:
    return random.Random(f"{split}/{seed}/{index}")
