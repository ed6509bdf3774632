"""Texts to rows, against the obvious loops."""

from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import param_features as pf
from param_features.cli.datasets import DataSource
from param_features.cli.models import LoadedModel, ModelSource
from param_features.cli.rows import RowSettings, load_rows, token_rows
from param_features.errors import InputError, SettingError

BOS, EOS = 1, 2


@dataclass
class Letters:
    """A tokenizer that takes every letter for a token; some put BOS first."""

    bos_token_id: int | None = None
    eos_token_id: int | None = None
    adds_bos: bool = False
    n_read: int = 0

    def __call__(self, texts, *, verbose):
        self.n_read += len(texts)
        start = [self.bos_token_id] if self.adds_bos else []
        return {"input_ids": [[*start, *(ord(letter) for letter in text)] for text in texts]}


TEXTS = st.lists(st.text("abc", max_size=12), max_size=12)


@given(TEXTS, st.integers(1, 5), st.integers(1, 8))
def test_rows_are_the_full_pieces_of_each_text(texts, n_ctx, n_rows):
    expected = [
        [ord(letter) for letter in text[start : start + n_ctx]]
        for text in texts
        for start in range(0, len(text), n_ctx)
        if start + n_ctx <= len(text)
    ]
    if not expected:
        with pytest.raises(
            InputError, match=f"fills a row of {n_ctx} tokens; the longest has {max(map(len, texts), default=0)}"
        ):
            token_rows(texts, Letters(), n_ctx, n_rows=n_rows)
        return
    rows, n_tokens = token_rows(texts, Letters(), n_ctx, n_rows=n_rows)
    assert rows.tolist() == expected[:n_rows]
    assert n_tokens == sum(map(len, texts)) or len(expected) >= n_rows


@given(
    TEXTS, st.integers(1, 5), st.sampled_from([Letters(), Letters(None, EOS), Letters(BOS, EOS), Letters(BOS, EOS, True)])
)
def test_packed_rows_are_the_full_pieces_of_all_texts_together(texts, n_ctx, tokenizer):
    start, end = ([BOS], []) if tokenizer.adds_bos else ([], [EOS] if tokenizer.eos_token_id else [])
    together = list(chain.from_iterable([*start, *map(ord, text), *end] for text in texts))
    expected = [together[at : at + n_ctx] for at in range(0, len(together) - n_ctx + 1, n_ctx)]
    if expected:
        rows, _ = token_rows(texts, tokenizer, n_ctx, n_rows=10**6, is_packed=True)
        assert rows.tolist() == expected


def test_reading_ends_when_there_are_rows_enough():
    tokenizer = Letters()
    token_rows(("abc" for _ in range(10_000)), tokenizer, 3, n_rows=5)
    assert tokenizer.n_read < 1000


class Loaded(LoadedModel):
    """A model of which only the context is known."""

    n_ctx = None


def loaded(n_ctx=None, tokenizer=None):
    found = Loaded(None, tokenizer)
    object.__setattr__(found, "n_ctx", n_ctx)
    return found


def test_rows_have_64_tokens_or_the_models_context(tmp_path):
    (tmp_path / "x.txt").write_text("a" * 200)
    source, data = ModelSource("x"), DataSource(str(tmp_path / "x.txt"))
    for n_ctx, expected in ((None, (3, 64)), (512, (3, 64)), (50, (4, 50))):
        rows = load_rows(loaded(n_ctx, Letters()), source, data, RowSettings(), quiet=True)
        assert rows.shape == expected
    with pytest.raises(SettingError, match="--n-ctx 51 exceeds the 50 tokens that the model reads"):
        load_rows(loaded(50, Letters()), source, data, RowSettings(n_ctx=51))
    with pytest.raises(InputError, match="--model x has no tokenizer"):
        load_rows(loaded(50, None), source, data, RowSettings())


def test_what_share_of_the_tokens_is_used_is_said(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("a" * 100)
    load_rows(loaded(None, Letters()), ModelSource("x"), DataSource(str(tmp_path / "x.txt")), RowSettings())
    assert capsys.readouterr().err == "data: 1 rows of 64 tokens, 64% of the 100 tokens read\n"


def test_the_embedded_models_tokens_are_its_own():
    rows = load_rows(loaded(64), ModelSource("demo"), DataSource("demo"), RowSettings(n_rows=7))
    assert torch.equal(rows, pf.demo.tokens(7))
    with pytest.raises(SettingError, match=r"--model is gpt2. Take --model demo.*\./demo"):
        load_rows(loaded(64), ModelSource("gpt2"), DataSource("demo"), RowSettings())


@pytest.mark.real
def test_rows_of_the_real_stories_are_those_of_their_own_loader(stories, real_folder):
    hf, tokenizer = stories.load_hf()
    rows = load_rows(
        LoadedModel(hf, tokenizer), ModelSource("x"), DataSource(str(real_folder / "tinystories_500.json")), RowSettings()
    )
    assert torch.equal(rows, stories.load_tokens())
