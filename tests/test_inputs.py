"""What the user may give as tokens or inputs, and what is refused with which advice."""

import pytest
import torch
from param_features.adapters import adapter_for
from torch import nn

from param_features.errors import AdapterError, InputError, NonFiniteError
from param_features.inputs import ModelInputs, read_inputs

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
