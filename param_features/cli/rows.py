"""Texts to rows of tokens of one length."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from param_features import demo
from param_features.cli.datasets import DataSource, check_source, read_texts
from param_features.cli.models import DEMO, LoadedModel, ModelSource
from param_features.cli.running import say
from param_features.errors import InputError, SettingError
from param_features.problem import cut_rows, delimited, encoded

_USUAL_N_CTX = 64


@dataclass(frozen=True)
class RowSettings:
    """How texts become rows.

    Attributes:
        n_ctx: Tokens per row; None for 64, or the model's context where that is shorter.
        n_rows: At most this many; reading ends there.
        is_packed: Whether texts are joined, so that a row may hold the end of one and the start of the next.
    """

    n_ctx: int | None = None
    n_rows: int = 4096
    is_packed: bool = False


def check_data(data: DataSource, model: ModelSource) -> None:
    """Refuse a data set that is not there, before any model is loaded.

    Raises:
        SettingError: The embedded model's own tokens are asked for, for another model.
        SourceError: It reads like a path and is not there, or is a file of another kind.
    """
    if data.name != DEMO:
        check_source(data)
    elif not model.is_demo:
        raise SettingError(
            f"--dataset demo has the embedded model's own tokens, and --model is {model.name}. Take --model demo, or "
            "another data set (a file of that name is ./demo)."
        )


def load_rows(
    loaded: LoadedModel, model: ModelSource, data: DataSource, settings: RowSettings, *, quiet: bool = False
) -> Int[Tensor, "batch pos"]:
    """Read a data set as rows of tokens, by the model's tokenizer.

    Raises:
        SettingError: Rows would be longer than the model reads.
        InputError: The model has no tokenizer, or no text fills a row.
        SourceError: The texts cannot be read.
        MissingExtraError: They are on the hub, and `datasets` is not installed.
    """
    check_data(data, model)
    n_ctx = _row_length(loaded, settings)
    if data.name == DEMO:
        return demo.tokens(settings.n_rows, n_ctx=n_ctx)
    if loaded.tokenizer is None:
        raise InputError(f"--model {model.name} has no tokenizer to read texts with. Save one in the model's folder.")
    rows, n_tokens = token_rows(
        read_texts(data), loaded.tokenizer, n_ctx, n_rows=settings.n_rows, is_packed=settings.is_packed
    )
    if not quiet:
        say(f"data: {len(rows):,} rows of {n_ctx} tokens, {rows.numel() / n_tokens:.0%} of the {n_tokens:,} tokens read")
    return rows


def token_rows(
    texts: Iterable[str], tokenizer: Any, n_ctx: int, *, n_rows: int, is_packed: bool = False
) -> tuple[Int[Tensor, "batch pos"], int]:
    """Cut each text into full rows; what is left at its end is left out, or goes before the next text when packing.

    Packed texts begin with the tokenizer's beginning-of-sequence token, or else end with its end-of-sequence token.

    Returns:
        The rows, and how many tokens were read.

    Raises:
        InputError: Not one row is full.
    """
    sequences = (delimited(ids, tokenizer) if is_packed else ids for ids in encoded(texts, tokenizer))
    rows, n_tokens, n_longest = cut_rows(sequences, n_ctx, n_rows, is_packed)
    if not rows:
        raise InputError(
            f"No text fills a row of {n_ctx} tokens; the longest has {n_longest}, all together {n_tokens}. Give more text, "
            "a smaller --n-ctx, or --pack, which joins texts."
        )
    return torch.tensor(rows), n_tokens


def _row_length(loaded: LoadedModel, settings: RowSettings) -> int:
    n_ctx = loaded.n_ctx
    if settings.n_ctx is None:
        return min(_USUAL_N_CTX, n_ctx or _USUAL_N_CTX)
    if n_ctx is not None and settings.n_ctx > n_ctx:
        raise SettingError(
            f"--n-ctx {settings.n_ctx} exceeds the {n_ctx} tokens that the model reads. Take at most {n_ctx}."
        )
    return settings.n_ctx
