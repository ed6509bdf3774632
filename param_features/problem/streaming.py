"""Rows of tokens from a data set that is read as it comes, until there are enough."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from param_features.errors import InputError, SettingError
from param_features.machine import public, shown
from param_features.params import marked_once

_AT_ONCE = 256
_USUAL_N_CTX = 64
_ID_FIELDS = ("input_ids", "tokens")


@public
def stream_rows(
    dataset: Iterable[Any],
    n_rows: int,
    *,
    tokenizer: Any = None,
    n_ctx: int | None = None,
    text_field: str = "text",
    is_packed: bool = False,
    seed: int | None = None,
    buffer_size: int = 10_000,
) -> Int[Tensor, "batch pos"]:
    """Read rows of tokens from a `datasets.Dataset` or `IterableDataset`, and no further than they are needed.

    What a streamed data set gives is bounded by `n_rows`, whose tokens are all that is kept: 8 bytes each. The same data
    set, settings and seed give the same rows, in every process too. `pf.harvest` and `pf.decompose` take them as `tokens=`.

    Args:
        dataset: Rows are mappings with ids under `"input_ids"` or `"tokens"`, or with a text; or bare texts or lists of ids.
        n_rows: How many rows of tokens; fewer where the data set ends before.
        tokenizer: A Hugging Face tokenizer, for texts.
        n_ctx: Tokens per row. Ids and texts are cut into full rows, and what is left at their ends is left out. By default
            as many as the first row has where it holds ids, 64 of texts.
        text_field: Where a row's text is.
        is_packed: Whether what is left at an end goes before the next one's start, so that short ones fill rows too; a text
            without a mark at its start gets the tokenizer's end-of-sequence token then.
        seed: Shuffles as `dataset.shuffle(seed=…)` does; the first rows where there is none.
        buffer_size: How many rows a streamed data set is shuffled among, as `datasets` says.

    Returns:
        Ids [batch pos].

    Raises:
        InputError: A row holds neither ids nor text, text needs a tokenizer, or not one row is full.
        SettingError: A setting is out of range, or the data set cannot be shuffled.
    """
    if n_rows < 1 or (n_ctx is not None and n_ctx < 1):
        raise SettingError(f"n_rows={n_rows} and n_ctx={n_ctx} must be positive.")
    id_lists = _id_lists(_shuffled(dataset, seed, buffer_size), tokenizer, text_field, is_packed)
    first = next(id_lists, None)
    if first is None:
        raise InputError("The data set gave no rows. Check its split and filters.")
    if n_ctx is None:
        n_ctx = len(first[0]) if first[1] else _USUAL_N_CTX
    rows, n_tokens, n_longest = cut_rows((ids for part in ([first], id_lists) for ids, _ in part), n_ctx, n_rows, is_packed)
    if not rows:
        raise InputError(
            f"Nothing fills a row of {n_ctx} tokens; the longest has {n_longest}, all together {n_tokens}. Give more, a "
            "smaller n_ctx, or is_packed=True, which joins texts."
        )
    return torch.tensor(rows)


def cut_rows(id_lists: Iterable[list[int]], n_ctx: int, n_rows: int, is_packed: bool) -> tuple[list[list[int]], int, int]:
    """Cut lists of ids into full rows until there are enough; also how many tokens were read, and the longest list's."""
    rows: list[list[int]] = []
    pending: list[int] = []
    n_tokens = n_longest = 0
    for ids in id_lists:
        n_tokens, n_longest = n_tokens + len(ids), max(n_longest, len(ids))
        pending = [*pending, *ids] if is_packed else ids
        end = len(pending) - len(pending) % n_ctx
        rows += [pending[start : start + n_ctx] for start in range(0, end, n_ctx)]
        pending = pending[end:]
        if len(rows) >= n_rows:
            break
    return rows[:n_rows], n_tokens, n_longest


def encoded(texts: Iterable[str], tokenizer: Any) -> Iterator[list[int]]:
    """Ids of each text, a few hundred texts at a time."""
    remaining = iter(texts)
    while batch := list(islice(remaining, _AT_ONCE)):
        id_lists = tokenizer(batch, verbose=False)["input_ids"]
        yield from (marked_once(tokenizer, text, ids) for text, ids in zip(batch, id_lists, strict=True))


def delimited(ids: list[int], tokenizer: Any) -> list[int]:
    """A text with a mark where it begins or ends."""
    has_start = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return ids if has_start or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _shuffled(dataset: Any, seed: int | None, buffer_size: int) -> Iterable[Any]:
    if seed is None:
        return dataset
    if not hasattr(dataset, "shuffle"):
        raise SettingError(
            f"seed={seed}, and a {type(dataset).__name__} cannot be shuffled. Give a datasets.Dataset or IterableDataset, "
            "or leave seed= out to take the first rows."
        )
    if hasattr(dataset, "__len__"):
        return dataset.shuffle(seed=seed)
    return dataset.shuffle(seed=seed, buffer_size=buffer_size)


def _id_lists(rows: Iterable[Any], tokenizer: Any, text_field: str, is_packed: bool) -> Iterator[tuple[list[int], bool]]:
    """Ids of each row, and whether they were there; rows are read a few hundred at a time where they are texts.

    Raises:
        InputError: A text needs a tokenizer.
    """
    remaining = iter(rows)
    for row in remaining:
        ids_or_text = _ids_or_text(row, text_field)
        if not isinstance(ids_or_text, str):
            yield ids_or_text, True
            continue
        if tokenizer is None:
            raise InputError(f"A row holds a text, {ids_or_text!r:.40}. Give tokenizer=, such as model.tokenizer.")
        if not (callable(tokenizer) and hasattr(tokenizer, "eos_token_id")):
            raise InputError(f"tokenizer is {shown(tokenizer)}. Give a Hugging Face tokenizer, such as model.tokenizer.")
        texts = (_ids_or_text(each, text_field) for each in islice(remaining, _AT_ONCE - 1))
        for ids in encoded([ids_or_text, *map(_only_text, texts)], tokenizer):
            yield delimited(ids, tokenizer) if is_packed else ids, False


def _ids_or_text(row: Any, text_field: str) -> str | list[int]:
    """Read the ids of a row, or else its text.

    Raises:
        InputError: It has neither.
    """
    value = row
    if isinstance(row, Mapping):
        name = next((name for name in (*_ID_FIELDS, text_field) if name in row), None)
        if name is None:
            fields = ", ".join(map(repr, row)) or "none"
            raise InputError(
                f"A row has the fields {fields}. Ids are looked for under {_ID_FIELDS[0]!r} and {_ID_FIELDS[1]!r}, text "
                f"under {text_field!r}; choose with text_field=."
            )
        value = row[name]
    values = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(values, str) or (isinstance(values, list | tuple) and all(isinstance(token, int) for token in values)):
        return values if isinstance(values, str) else list(values)
    raise InputError(f"A row holds {value!r:.60}. Expected a text, or a list of integer ids.")


def _only_text(ids_or_text: str | list[int]) -> str:
    if isinstance(ids_or_text, str):
        return ids_or_text
    raise InputError(f"Some rows hold texts, and one ids, {ids_or_text[:5]}. Give one kind.")
