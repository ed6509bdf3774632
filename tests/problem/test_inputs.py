"""What the user may give as tokens or inputs, and what is refused with which advice."""

import pytest
import torch
from torch import nn

from param_features.errors import AdapterError, InputError, NonFiniteError
from param_features.params import adapter_for
from param_features.problem import ModelInputs, read_inputs, real_first

N_VOCAB = 10


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(N_VOCAB, 4)


def read(tokens=None, inputs=None) -> ModelInputs:
    return read_inputs(adapter_for(Language()), tokens, inputs)


def spelling(text: str) -> list[int]:
    return [ord(letter) - ord("a") for letter in text]


GOOD = torch.arange(8).reshape(2, 4)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8], ids=str)
def test_integer_tokens_become_long(dtype):
    found = read(GOOD.to(dtype))
    assert torch.equal(found.tokens, GOOD)
    assert (found.tokens.dtype, found.mask, len(found)) == (torch.long, None, 2)


@pytest.mark.parametrize(
    "column", [GOOD.tolist(), list(GOOD), GOOD.numpy(), tuple(GOOD.numpy())], ids=["ids", "t", "n", "tn"]
)
def test_columns_of_ids_become_a_batch(column):
    found = read(column)
    assert torch.equal(found.tokens, GOOD)
    assert found.mask is None


def test_ragged_rows_are_padded_on_the_right_under_a_mask():
    found = read([[1, 2, 3], [4], [9, 9]])
    assert torch.equal(found.mask, torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]]).bool())
    assert [row[keep].tolist() for row, keep in zip(found.tokens, found.mask, strict=True)] == [[1, 2, 3], [4], [9, 9]]
    assert found.token_rows == [[1, 2, 3], [4], [9, 9]]
    assert torch.equal(found.rows([1]).mask, found.mask[[1]])


def test_texts_are_read_by_the_adapter(monkeypatch):
    adapter = adapter_for(Language())
    monkeypatch.setattr(type(adapter), "to_ids", lambda self, text: spelling(text))
    found = read_inputs(adapter, ["abc", "j"], None)
    assert found.token_rows == [[0, 1, 2], [9]]
    with pytest.raises(InputError, match=r"tokens\[1, 0\] is 25.*another tokenizer"):
        read_inputs(adapter, ["abc", "z"], None)
    with pytest.raises(InputError, match="2 rows, 1 of them empty"):
        read_inputs(adapter, ["abc", ""], None)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (GOOD.float(), r"torch\.float32 of shape \(2, 4\).*pass embeddings or images as inputs="),
        (GOOD > 3, r"torch\.bool.*integers"),
        (GOOD.to(torch.complex64), r"torch\.complex64"),
        (torch.arange(4), r"shape \(4,\).*tokens\.unsqueeze\(0\)"),
        (GOOD[None], r"shape \(1, 2, 4\).*\[batch, pos\]"),
        (GOOD[:0], r"shape \(0, 4\).*at least one of each"),
        (GOOD[:, :0], r"shape \(2, 0\).*at least one of each"),
        (GOOD + 4, r"tokens\[1, 3\] is 11.*ids 0 to 9.*another tokenizer"),
        (GOOD - 1, r"tokens\[0, 0\] is -1.*ids 0 to 9"),
        ([[1, 2], [3, 10]], r"tokens\[1, 1\] is 10"),
        ([], r"0 rows"),
        ([[1], []], r"2 rows, 1 of them empty"),
        ([[1.0, 2.0]], r"starts \[1\.0, 2\.0\].*integer ids"),
        ([[True, False]], r"starts \[True, False\]"),
        ([[[1, 2]]], r"integer ids"),
        ([1, 2, 3], r"row of tokens is 1.*integer ids"),
        (GOOD[0].numpy(), r"row of tokens is 0.*integer ids"),
        ([None], r"row of tokens is None"),
        ("a text", r"tokens is a str.*list of strings"),
        ({"text": ["a"]}, r'tokens is a dict.*dataset\["text"\]'),
        (3, r"tokens is a int"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
def test_tokens_that_cannot_be_read_are_refused(tokens, message):
    with pytest.raises(InputError, match=message):
        read(tokens)


def test_sequences_longer_than_the_context_are_refused(tiny_hooked):
    adapter = adapter_for(tiny_hooked)
    read_inputs(adapter, torch.zeros(2, 12, dtype=torch.long), None)
    for tokens in (torch.zeros(2, 13, dtype=torch.long), [[1], [2] * 13]):
        with pytest.raises(InputError, match=r"13 positions.*context has 12\. Cut"):
            read_inputs(adapter, tokens, None)


def test_texts_longer_than_the_context_are_refused_with_the_tokenizers_own_cut(tiny_hooked, monkeypatch):
    adapter = adapter_for(tiny_hooked)
    monkeypatch.setattr(type(adapter), "to_ids", lambda self, text: [1] * len(text))
    with pytest.raises(InputError, match=r"texts have 13 positions.*truncation=True, max_length=12"):
        read_inputs(adapter, ["a" * 5, "a" * 13], None)


def test_texts_need_a_tokenizer():
    with pytest.raises(AdapterError, match=r"Language has no tokenizer.*'some text'.*integer tensor \[batch, pos\]"):
        read(["some text"])


@pytest.mark.parametrize(("both", "message"), [((None, None), "neither tokens nor inputs"), ((GOOD, GOOD), "both")])
def test_exactly_one_of_tokens_and_inputs(both, message):
    with pytest.raises(InputError, match=message):
        read(*both)


IMAGES, MASKS = torch.randn(3, 2, 2), torch.ones(3, 2, dtype=torch.bool)


@pytest.mark.parametrize(
    ("inputs", "args", "kwargs"),
    [
        (IMAGES, (IMAGES,), {}),
        ((IMAGES, MASKS), (IMAGES, MASKS), {}),
        ([IMAGES, 0.5], (IMAGES, 0.5), {}),
        ({"x": IMAGES, "mask": MASKS, "flag": True}, (), {"x": IMAGES, "mask": MASKS, "flag": True}),
    ],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_inputs_are_the_models_arguments(inputs, args, kwargs):
    found = read(inputs=inputs)
    assert found.args == args
    assert found.kwargs == kwargs
    assert len(found) == 3
    row = found.rows(torch.tensor([2, 0]))
    assert all(torch.equal(one, two[[2, 0]]) for one, two in zip(row.tensors, found.tensors, strict=True))
    assert [value for value in (*row.args, *row.kwargs.values()) if not isinstance(value, torch.Tensor)] == [
        value for value in (*args, *kwargs.values()) if not isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((IMAGES, MASKS[:2]), InputError, r"\(3, 2, 2\), \(2, 2\).*batch as its first axis"),
        (IMAGES[:0], InputError, r"\(0, 2, 2\).*at least one row"),
        (torch.tensor(1.0), InputError, r"\[\(\)\]"),
        ({}, InputError, r"shapes \[\]"),
        ((1, "a"), InputError, r"shapes \[\]"),
        ((IMAGES, torch.full((3,), torch.nan)), NonFiniteError, r"shape \(3,\) hold NaN or infinity"),
        ({"x": IMAGES / 0}, NonFiniteError, r"shape \(3, 2, 2\) hold NaN"),
        (GOOD + 4, InputError, r"tokens\[1, 3\] is 11"),
    ],
    ids=["unequal", "empty", "scalar", "nothing", "no tensor", "nan", "infinity", "out of vocabulary"],
)
def test_inputs_that_cannot_be_read_are_refused(inputs, error, message):
    with pytest.raises(error, match=message):
        read(inputs=inputs)


def test_a_model_without_a_vocabulary_takes_any_integers():
    found = read_inputs(adapter_for(nn.Linear(2, 2)), None, torch.full((2, 2), 99))
    assert int(found.tokens.max()) == 99


def test_inputs_move_to_the_models_device_and_keep_their_type():
    model = nn.Linear(2, 2, device="meta")
    found = read_inputs(adapter_for(model), None, (torch.randn(2, 2), torch.zeros(2, dtype=torch.long)))
    assert [(tensor.device.type, tensor.dtype) for tensor in found.tensors] == [
        ("meta", torch.float32),
        ("meta", torch.long),
    ]


def encoding(*rows: list[int], side: str = "right", pad: int = 0) -> dict[str, torch.Tensor]:
    """As a Hugging Face tokenizer pads: ids, and a mask of ones where they are real."""
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    join = (lambda row, rest: rest + row) if side == "left" else (lambda row, rest: row + rest)
    ids = [join(row, [pad] * len(rest)) for row, rest in zip(rows, fill, strict=True)]
    mask = [join([1] * len(row), rest) for row, rest in zip(rows, fill, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


ROWS = [[1, 2, 3, 4], [5], [6, 0]]


@pytest.fixture
def padded_anywhere(monkeypatch):
    """A plain module that is told about its padding."""
    adapter = adapter_for(Language())
    monkeypatch.setattr(type(adapter), "padding", lambda self, mask: {"told": mask.long()})
    return adapter


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batched", [False, True], ids=["dict", "BatchEncoding"])
def test_an_encodings_mask_says_what_is_padding(padded_anywhere, side, batched):
    given = encoding(*ROWS, side=side) | {"token_type_ids": torch.zeros(3, 4, dtype=torch.long)}
    if batched:
        given = pytest.importorskip("transformers").BatchEncoding(given)
    found = read_inputs(padded_anywhere, given, None)
    assert torch.equal(found.tokens, given["input_ids"])
    assert torch.equal(found.mask, given["attention_mask"].bool())
    assert torch.equal(found.kwargs["told"], given["attention_mask"])
    assert len(found.args) == len(found.kwargs) == 1
    assert found.token_rows == ROWS


@pytest.mark.parametrize("given", [encoding([1, 2], [3, 4]), {"input_ids": GOOD}, {"input_ids": GOOD.tolist()}])
def test_an_encoding_without_padding_is_its_tokens(given):
    found = read(given)
    assert torch.equal(found.tokens, torch.as_tensor(given["input_ids"]))
    assert (found.kwargs, found.mask) == ({}, None)


def test_an_encoding_of_lists_is_padded_on_the_right():
    found = read({"input_ids": ROWS, "attention_mask": [[1] * len(row) for row in ROWS]})
    assert found.token_rows == ROWS
    assert torch.equal(found.mask, encoding(*ROWS)["attention_mask"].bool())


@pytest.mark.parametrize("as_inputs", [False, True], ids=["tokens", "inputs"])
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1, 1], [1, 1, 1, 1]], r"Row 0 of attention_mask marks 3 positions in 2 runs.*one run"),
        ([[1, 1, 1, 1], [0, 1, 0, 1]], r"Row 1 of attention_mask marks 2 positions in 2 runs"),
        ([[1, 1, 1, 1], [0, 0, 0, 0]], r"Row 1 of attention_mask marks 0 positions in 0 runs"),
        ([[1, 1, 1]] * 2, r"attention_mask has shape \(2, 3\) and the tokens \(2, 4\)"),
        ([[1, 1, 1, 1]], r"attention_mask has shape \(1, 4\) and the tokens \(2, 4\)|tensors of shapes"),
    ],
    ids=["gap", "two runs", "empty row", "too short", "too few rows"],
)
def test_masks_that_cannot_be_read_are_refused(mask, message, as_inputs):
    given = {"input_ids": GOOD, "attention_mask": torch.tensor(mask)}
    with pytest.raises(InputError, match=message):
        read(**{"inputs" if as_inputs else "tokens": given})


def test_a_mask_of_uneven_rows_is_refused_beside_a_tensor_of_ids():
    assert read({"input_ids": GOOD, "attention_mask": [[1, 1, 1, 0]] * 2}).mask.tolist() == [[True, True, True, False]] * 2
    with pytest.raises(InputError, match=r"attention_mask has shape \(\).*0/1 tensor"):
        read({"input_ids": GOOD, "attention_mask": [[1] * 4, [1] * 3]})


def test_an_encodings_ids_are_checked_like_any_tokens():
    with pytest.raises(InputError, match=r"tokens\[1, 3\] is 11"):
        read({"input_ids": GOOD + 4, "attention_mask": torch.ones_like(GOOD)})


def test_padding_on_the_left_is_refused_where_nothing_can_tell_the_model():
    with pytest.raises(AdapterError, match=r"padded on the left, and Language has no known.*Pad on the right.*inputs="):
        read(encoding(*ROWS, side="left"))


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_attention_mask_among_the_inputs_marks_padding_and_reaches_the_model(side):
    given = encoding(*ROWS, side=side, pad=9) | {"flag": True}
    found = read(inputs=given)
    assert found.kwargs.keys() == given.keys()
    assert torch.equal(found.kwargs["attention_mask"], given["attention_mask"])
    assert torch.equal(found.mask, given["attention_mask"].bool())
    assert found.token_rows == ROWS
    assert torch.equal(found.rows([2]).mask, found.mask[[2]])


@pytest.mark.parametrize("mask", [torch.ones(2, 4), torch.ones(2, 1, 4, 4), "causal", None])
def test_other_attention_masks_are_the_models_own_affair(mask):
    assert read(inputs={"input_ids": GOOD, "attention_mask": mask}).mask is None


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_places_put_real_positions_first_in_order(side):
    given = encoding([1, 2, 3, 4], [5], [6, 0], side=side) if side != "none" else {"input_ids": GOOD}
    found = read(inputs=given)
    places, real = found.places, found.mask if found.mask is not None else torch.ones_like(found.tokens).bool()
    assert torch.equal(places.sort(1).values, torch.arange(4).expand_as(places))
    for row, ids in enumerate(found.token_rows):
        assert found.tokens[row, places[row, : len(ids)]].tolist() == ids
        assert real[row, places[row]].tolist() == [True] * len(ids) + [False] * (4 - len(ids))
    values = found.tokens.unsqueeze(2) * torch.tensor([1.0, -2.0])
    moved = real_first(values, found)
    for row, ids in enumerate(found.token_rows):
        assert moved[row, : len(ids), 1].tolist() == [-2.0 * token for token in ids]


@pytest.mark.parametrize("extra", ["attention_mask", "position_ids", "token_type_ids", "labels"])
@pytest.mark.parametrize("name", ["input_ids", "idx"])
def test_tokens_are_the_ids_whatever_stands_before_them(extra, name):
    found = ModelInputs((), {extra: torch.ones(2, 4, dtype=torch.long), "weights": torch.ones(2, 4), name: GOOD})
    assert found.tokens is GOOD
    assert ModelInputs((), {extra: torch.ones(2, 4, dtype=torch.long)}).tokens is None


def test_input_ids_come_before_other_integers():
    other = torch.zeros(2, 4, dtype=torch.long)
    assert ModelInputs((), {"other": other, "input_ids": GOOD}).tokens is GOOD
    assert ModelInputs((other, GOOD), {}).tokens is other


@pytest.mark.parametrize("kind", ["lists", "numpy"])
def test_an_encoding_padded_as_lists_or_numpy_keeps_its_mask(kind):
    convert = torch.Tensor.tolist if kind == "lists" else torch.Tensor.numpy
    found = read({name: convert(tensor) for name, tensor in encoding(*ROWS, pad=7).items()})
    assert found.token_rows == ROWS


META = torch.zeros(2, 4, dtype=torch.long, device="meta")


@pytest.mark.parametrize(
    ("tokens", "inputs", "name"),
    [
        (META, None, "tokens"),
        ({"input_ids": META, "attention_mask": META}, None, "tokens"),
        ([META[0], META[1]], None, "tokens"),
        (None, META, "inputs"),
        (None, (GOOD, META), "inputs"),
        (None, {"x": META.float()}, "inputs"),
    ],
    ids=["tensor", "encoding", "rows", "input", "arguments", "keywords"],
)
def test_tensors_without_values_are_refused_by_name(tokens, inputs, name):
    with pytest.raises(InputError, match=f"{name}= is on the meta device: it has a shape but no values"):
        read(tokens, inputs)
