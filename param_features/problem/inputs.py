"""What the model is run on: tokens, or anything that a plain module takes, with the samples on the first axis."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, NonFiniteError
from param_features.params import Adapter, device_for_inputs
from param_features.problem.arguments import DECODER_TOKENS, ModelInputs, count_runs, holds_integers
from param_features.problem.padding import padding_of

_BESIDE_TOKENS = {"attention_mask", "decoder_attention_mask", "position_ids", "token_type_ids", "labels"}


def read_inputs(adapter: Adapter, tokens: Any, inputs: Any) -> ModelInputs:
    """Turn what the user gave into `ModelInputs`, refusing what the model cannot take.

    Args:
        adapter: Knows the vocabulary and the tokenizer.
        tokens: Integers [batch, pos]; or strings, tokenised one by one and padded on the right; or a column of either; or
            what a Hugging Face tokenizer returns, whose `attention_mask` says what is padding, on either side. Without a
            mask the tokenizer's padding token tells it, see `padding_of`.
        inputs: A tensor, or a tuple or dict of arguments; an `attention_mask` [batch, pos] among them marks padding, beside
            a decoder's tokens its `decoder_attention_mask`. Exactly one of `tokens` and `inputs` is given.

    Raises:
        InputError: Both or neither are given; tokens are not integers, lie outside the vocabulary, are too long or
            empty; the arguments hold no tensor or disagree about the batch.
        NonFiniteError: Inputs hold NaN or infinity.
    """
    if (tokens is None) == (inputs is None):
        raise InputError(
            f"Got {'neither tokens nor inputs' if tokens is None else 'both tokens and inputs'}. Give tokens= an integer "
            "tensor [batch, pos] or a list of strings, or inputs= what a plain module takes."
        )
    name, given = ("tokens", tokens) if inputs is None else ("inputs", inputs)
    refuse_meta(name, given)
    device = device_for_inputs(adapter.module)
    arguments = _from_tokens(adapter, tokens) if tokens is not None else _from_inputs(adapter, inputs)
    return arguments.map(lambda tensor: tensor.to(device))


def refuse_meta(name: str, given: Any) -> None:
    """Refuse tensors that have no values.

    Raises:
        InputError: One lies on the meta device.
    """
    values = given.values() if isinstance(given, Mapping) else given if isinstance(given, tuple | list) else (given,)
    if any(isinstance(value, Tensor) and value.is_meta for value in values):
        raise InputError(f"{name}= is on the meta device: it has a shape but no values. Give a tensor that holds numbers.")


def read_either(adapter: Adapter, data: Any) -> ModelInputs:
    """Read what may be tokens or inputs: texts, rows of ids, an integer matrix or an encoding are tokens.

    Tensors of other kinds, tuples and dicts of arguments are inputs. Errors are those of `read_inputs`.
    """
    if isinstance(data, Tensor):
        is_tokens = data.dim() == 2 and holds_integers(data)
    else:
        is_encoding = isinstance(data, Mapping) and "input_ids" in data and not data.keys() & set(DECODER_TOKENS)
        is_tokens = is_encoding if isinstance(data, Mapping) else not isinstance(data, tuple)
    return read_inputs(adapter, data, None) if is_tokens else read_inputs(adapter, None, data)


def _from_tokens(adapter: Adapter, tokens: Any, *, is_masked: bool = False) -> ModelInputs:
    if isinstance(tokens, Mapping) and "input_ids" in tokens:
        return _from_encoding(adapter, tokens)
    if not isinstance(tokens, Tensor):
        return _from_column(adapter, tokens)
    if not holds_integers(tokens):
        raise InputError(
            f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}. Token ids are integers (torch.long); pass "
            "embeddings or images as inputs=."
        )
    if tokens.dim() != 2 or not tokens.numel():
        raise InputError(
            f"tokens have shape {tuple(tokens.shape)}. Expected [batch, pos] with at least one of each"
            + ("; tokens.unsqueeze(0) makes a batch of one." if tokens.dim() == 1 and tokens.numel() else ".")
        )
    _check_ids(adapter, tokens)
    tokens = tokens.long()
    return _masked(adapter, tokens, None if is_masked else padding_of(adapter, tokens))


def _masked(adapter: Adapter, tokens: Tensor, mask: Tensor | None) -> ModelInputs:
    return ModelInputs((tokens,), {} if mask is None else adapter.padding(mask), mask)


def _from_encoding(adapter: Adapter, encoding: Mapping) -> ModelInputs:
    """What a tokenizer returns: ids of one length with a mask, as tensors or not, or lists of several lengths."""
    ids = _as_tensor(encoding["input_ids"])
    is_masked = "attention_mask" in encoding and isinstance(ids, Tensor)
    inputs = _from_tokens(adapter, ids, is_masked=is_masked)
    if not is_masked:
        return inputs
    return _masked(adapter, inputs.args[0], _read_mask(_as_tensor(encoding["attention_mask"]), inputs))


def _as_tensor(rows: Any) -> Any:
    """Rows of one length as a tensor; other rows, which hold no padding, as they are."""
    if isinstance(rows, Tensor):
        return rows
    is_even = len({len(row) for row in rows}) == 1
    return torch.as_tensor(rows) if is_even else rows


def _read_mask(attention_mask: Any, inputs: ModelInputs) -> Tensor | None:
    """The mask as booleans, None when nothing is padded.

    Raises:
        InputError: It has another shape than the tokens, leaves a row empty, or has gaps inside a row.
    """
    tokens = inputs.ids
    if tokens is None or not isinstance(attention_mask, Tensor) or attention_mask.shape != tokens.shape:
        raise InputError(
            f"attention_mask has shape {tuple(getattr(attention_mask, 'shape', ()))} and the tokens "
            f"{None if tokens is None else tuple(tokens.shape)}. Give a 0/1 tensor of the tokens' shape [batch, pos]."
        )
    mask = attention_mask.bool()
    if bool(mask.all()):
        return None
    runs = count_runs(mask)
    if bool((runs != 1).any()):
        row = int((runs != 1).nonzero()[0])
        raise InputError(
            f"Row {row} of attention_mask marks {int(mask[row].sum())} positions in {int(runs[row])} runs. Each row needs "
            "one run of real positions, with padding before or after it."
        )
    return mask


def _check_ids(adapter: Adapter, tokens: Tensor, *, are_texts: bool = False) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if adapter.d_vocab is not None and (low < 0 or high >= adapter.d_vocab):
        bad = low if low < 0 else high
        row, pos = (tokens == bad).nonzero()[0].tolist()
        raise InputError(
            f"tokens[{row}, {pos}] is {bad}. The model's vocabulary has ids 0 to {adapter.d_vocab - 1}. Were the tokens "
            "made with another tokenizer?"
        )
    if adapter.n_ctx is not None and tokens.shape[1] > adapter.n_ctx:
        cut = f"tokens[:, :{adapter.n_ctx}], or [row[:{adapter.n_ctx}] for row in rows]"
        if are_texts:
            cut = f"pass tokenizer(texts, truncation=True, max_length={adapter.n_ctx}, padding=True) instead of the texts"
        raise InputError(
            f"{'texts' if are_texts else 'tokens'} have {tokens.shape[1]} positions; the model's context has "
            f"{adapter.n_ctx}. Cut the sequences: {cut}."
        )


def _from_column(adapter: Adapter, column: Any) -> ModelInputs:
    """A list or `datasets` column of strings or of id sequences."""
    if isinstance(column, str | bytes | Mapping) or not isinstance(column, Sequence) and not hasattr(column, "__getitem__"):
        raise InputError(
            f"tokens is a {type(column).__name__}. Give an integer tensor [batch, pos], a list of strings, or a column of "
            'a dataset such as dataset["text"]; pf.stream_rows(dataset, n_rows) reads rows of a whole data set.'
        )
    rows = [adapter.to_ids(row) if isinstance(row, str) else _ids(row) for row in column]
    if not rows or not all(rows):
        raise InputError(f"tokens has {len(rows)} rows, {sum(not row for row in rows)} of them empty. Leave empty rows out.")
    return _padded(adapter, rows, are_texts=isinstance(column[0], str))


def _ids(row: Any) -> list[int]:
    values = row.tolist() if hasattr(row, "tolist") else row
    if isinstance(row, Mapping):
        raise InputError(
            f'A row of tokens has the fields {", ".join(map(repr, row))}. Give one column, such as dataset["text"], or rows '
            "that pf.stream_rows(dataset, n_rows) read."
        )
    if not isinstance(values, Sequence):
        raise InputError(f"A row of tokens is {values!r}. Rows are strings or sequences of integer ids.")
    values = list(values)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"A row of tokens starts {values[:5]!r}. Rows are strings or sequences of integer ids.")
    return values


def _padded(adapter: Adapter, rows: list[list[int]], *, are_texts: bool = False) -> ModelInputs:
    """Pad on the right, which a causal model's earlier positions cannot see; the mask says what is real."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    _check_ids(adapter, tokens, are_texts=are_texts)
    if mask.all():
        return _masked(adapter, tokens, None if are_texts else padding_of(adapter, tokens, are_listed=True))
    return _masked(adapter, tokens, mask)


def _from_inputs(adapter: Adapter, inputs: Any) -> ModelInputs:
    arguments = _named(adapter, inputs)
    sizes = {tuple(tensor.shape[:1]) for tensor in arguments.tensors}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise InputError(
            f"inputs hold tensors of shapes {[tuple(t.shape) for t in arguments.tensors]}. Every tensor needs the batch as "
            "its first axis, the same in all, and at least one row."
        )
    for tensor in arguments.tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"inputs of shape {tuple(tensor.shape)} hold NaN or infinity. Clean the data first.")
    check_tokens(adapter, arguments)
    if arguments.ids is None:
        return arguments
    has_decoder = arguments.decoder_tokens is not None
    mask = arguments.kwargs.get("decoder_attention_mask" if has_decoder else "attention_mask")
    if isinstance(mask, Tensor):
        return replace(arguments, mask=_read_mask(mask, arguments)) if mask.dim() == 2 else arguments
    mask = padding_of(adapter, arguments.ids.long())
    if mask is None or has_decoder:
        return replace(arguments, mask=mask)
    return replace(arguments, kwargs=arguments.kwargs | adapter.padding(mask), mask=mask)


def _named(adapter: Adapter, inputs: Any) -> ModelInputs:
    """The arguments; by name where the model has an encoder and a decoder, whose tokens must be told apart."""
    if isinstance(inputs, Mapping):
        return ModelInputs((), dict(inputs))
    args = tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)
    names = adapter.call_names
    is_decoding = any(name in DECODER_TOKENS for name in names[: len(args)])
    return ModelInputs((), dict(zip(names, args, strict=False))) if is_decoding else ModelInputs(args, {})


def check_tokens(adapter: Adapter, inputs: ModelInputs) -> None:
    """Refuse token ids that the model does not know, where the arguments are known to be tokens.

    Raises:
        InputError: An id lies outside the vocabulary, or a row is longer than the context.
    """
    matrices = inputs.token_matrices
    known = [name for name in matrices if name in (*DECODER_TOKENS, "input_ids")]
    n_arguments = len(inputs.args) + len(inputs.kwargs.keys() - _BESIDE_TOKENS)
    for name in known or (list(matrices) if n_arguments == 1 else []):
        _check_ids(adapter, matrices[name])
