"""Rows of tokens from data sets that are read as they come."""

import pytest
import torch

import param_features as pf
from param_features.errors import InputError, SettingError
from param_features.problem.streaming import stream_rows


class Words:
    """One id a word; no text is marked."""

    bos_token_id, eos_token_id = None, 99

    def __call__(self, texts, verbose=True):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


IDS = [[n, n + 1, n + 2, n + 3, n + 4] for n in range(0, 4000, 5)]
TEXTS = [" ".join(map(str, ids)) for ids in IDS]


def streamed(rows, **fields):
    """A streamed data set, and the rows that were read of it."""
    datasets = pytest.importorskip("datasets")
    read = []

    def give():
        for row in rows:
            read.append(row)
            yield {name: row for name in fields} if fields else row

    return datasets.IterableDataset.from_generator(give), read


@pytest.mark.parametrize("field", ["input_ids", "tokens"])
def test_no_more_is_read_of_a_stream_than_the_rows_that_are_asked_for(field):
    dataset, read = streamed(IDS, **{field: None})
    assert torch.equal(stream_rows(dataset, 7), torch.tensor(IDS[:7]))
    assert len(read) == 7


def test_texts_are_read_a_few_hundred_at_a_time():
    dataset, read = streamed(TEXTS, text=None)
    assert torch.equal(stream_rows(dataset, 7, tokenizer=Words(), n_ctx=4), torch.tensor([ids[:4] for ids in IDS[:7]]))
    assert len(read) <= 256


@pytest.mark.parametrize("n_ctx", [2, 5, 7])
def test_rows_are_cut_or_packed_as_a_slow_loop_would(n_ctx):
    whole = [ids[start : start + n_ctx] for ids in IDS for start in range(0, len(ids) - n_ctx + 1, n_ctx)]
    joined = [one for ids in IDS for one in ids]
    marked = [one for ids in IDS for one in (*ids, 99)]
    dataset, _ = streamed(IDS, tokens=None)
    if whole:
        assert stream_rows(dataset, 20, n_ctx=n_ctx).tolist() == whole[:20]
    assert stream_rows(dataset, 20, n_ctx=n_ctx, is_packed=True).flatten().tolist() == joined[: 20 * n_ctx]
    found = stream_rows(TEXTS, 20, n_ctx=n_ctx, tokenizer=Words(), is_packed=True)
    assert found.flatten().tolist() == marked[: 20 * n_ctx]


def test_a_seed_shuffles_as_the_data_set_does():
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"tokens": IDS})
    expected = torch.tensor(whole.shuffle(seed=3)[:6]["tokens"])
    assert torch.equal(stream_rows(whole, 6, seed=3), expected)
    assert not torch.equal(expected, torch.tensor(IDS[:6]))
    dataset, read = streamed(IDS, tokens=None)
    first, second, other = (stream_rows(dataset, 6, seed=seed, buffer_size=50) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert len(read) < 3 * 80


def test_a_data_set_that_ends_gives_what_it_has():
    assert len(stream_rows(({"tokens": ids} for ids in IDS[:4]), 99)) == 4


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ([{"story": "1 2"}], {}, r"fields 'story'.*text_field="),
        ([{"text": "1 2"}], {}, r"holds a text, '1 2'.*tokenizer="),
        ([{"tokens": 3}], {}, r"holds 3.*list of integer ids"),
        ([{"tokens": [1.5]}], {}, r"holds \[1.5\]"),
        ([{"tokens": [1, 2]}], {"n_ctx": 5}, r"fills a row of 5 tokens; the longest has 2"),
        ([], {}, r"gave no rows"),
        (["1 2", [1, 2]], {"tokenizer": Words()}, r"Some rows hold texts, and one ids"),
    ],
)
def test_what_cannot_be_read_is_refused(dataset, settings, message):
    with pytest.raises(InputError, match=message):
        stream_rows(dataset, 3, **settings)


def test_settings_out_of_range_are_refused():
    with pytest.raises(SettingError, match=r"n_rows=0"):
        stream_rows(IDS, 0)
    with pytest.raises(SettingError, match=r"seed=1.*list cannot be shuffled"):
        stream_rows(IDS, 3, seed=1)


def test_a_whole_data_set_as_tokens_is_told_how_to_be_read(tiny_hooked):
    datasets = pytest.importorskip("datasets")
    dataset, _ = streamed(IDS, tokens=None)
    for given in (dataset, datasets.Dataset.from_dict({"tokens": IDS})):
        with pytest.raises(InputError, match=r"pf.stream_rows\(dataset, n_rows\)"):
            pf.decompose(tiny_hooked, "blocks.0.attn.W_K", given)
