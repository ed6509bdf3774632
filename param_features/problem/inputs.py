"""What the model is run on: tokens, or anything that a plain module takes, with the samples on the first axis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.errors import InputError, NonFiniteError
from param_features.params import Adapter, device_for_inputs


@dataclass(frozen=True)
class ModelInputs:
    """Arguments of the model's call; tensors have the batch first, other values are passed on as they are.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        mask: True where a position is real; False for padding. None when nothing is padded.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Bool[Tensor, "batch pos"] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor argument."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def is_all_tensors(self) -> bool:
        """Whether every argument is a tensor."""
        return len(self.tensors) == len(self.args) + len(self.kwargs)

    @property
    def tokens(self) -> Int[Tensor, "batch pos"] | None:
        """`input_ids`, or else the first integer matrix among the arguments that is no mask; None without one."""
        arguments = [
            (str(key), value) for key, value in (*enumerate(self.args), *self.kwargs.items()) if key not in _NO_TOKENS
        ]
        matrices = [(name, t) for name, t in arguments if isinstance(t, Tensor) and t.dim() == 2 and _holds_integers(t)]
        return next((t for name, t in matrices if name == "input_ids"), matrices[0][1] if matrices else None)

    @property
    def n_pos(self) -> int:
        """Positions of each sequence, padding included; 1 without tokens."""
        return 1 if self.tokens is None else self.tokens.shape[1]

    @property
    def token_rows(self) -> list[list[int]]:
        """Every row's token ids without its padding; empty without tokens."""
        if self.tokens is None:
            return []
        rows = self.tokens.tolist()
        if self.mask is None:
            return rows
        return [
            [token for token, is_real in zip(*pair, strict=True) if is_real]
            for pair in zip(rows, self.mask.tolist(), strict=True)
        ]

    @property
    def places(self) -> Int[Tensor, "batch pos"]:
        """Where each row's positions lie, the real ones first: `places[row, i]` holds the i-th of `token_rows[row]`."""
        if self.mask is None:
            return torch.arange(self.n_pos).expand(len(self), self.n_pos)
        return (~self.mask.cpu()).long().argsort(dim=1, stable=True)

    @property
    def last_positions(self) -> Int[Tensor, " batch"]:
        """Where each row's last real position lies; zeros without tokens."""
        if self.mask is None:
            return torch.full((len(self),), self.n_pos - 1)
        return self.mask.cpu().long().cumsum(1).argmax(1)

    def __len__(self) -> int:
        """How many rows the batch has."""
        return len(self.tensors[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> "ModelInputs":
        """Apply `function` to every tensor."""
        change = lambda value: function(value) if isinstance(value, Tensor) else value  # noqa: E731
        args, kwargs = tuple(map(change, self.args)), {key: change(value) for key, value in self.kwargs.items()}
        return ModelInputs(args, kwargs, None if self.mask is None else function(self.mask))

    def rows(self, index: Any) -> "ModelInputs":
        """Choose rows of the batch."""
        return self.map(lambda tensor: tensor[index.to(tensor.device) if isinstance(index, Tensor) else index])

    def chosen(self, rows: Sequence[int], positions: Sequence[int]) -> tuple["ModelInputs", Int[Tensor, " row"]]:
        """Some rows, and where in each of them the given position lies, counted without padding."""
        inputs = self.rows(list(rows))
        return inputs, inputs.places.gather(1, torch.tensor(positions).unsqueeze(1))[:, 0]


def real_first(values: Float[Tensor, "batch pos feature"], inputs: ModelInputs) -> Float[Tensor, "batch pos feature"]:
    """Values by position, each row's real positions first, as in `token_rows`; on the CPU."""
    return values.cpu().gather(1, inputs.places.unsqueeze(2).expand(values.shape))


_NO_TOKENS = ("attention_mask", "position_ids", "token_type_ids", "labels")


def _holds_integers(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def read_inputs(adapter: Adapter, tokens: Any, inputs: Any) -> ModelInputs:
    """Turn what the user gave into `ModelInputs`, refusing what the model cannot take.

    Args:
        adapter: Knows the vocabulary and the tokenizer.
        tokens: Integers [batch, pos]; or strings, tokenised one by one and padded on the right; or a column of either; or
            what a Hugging Face tokenizer returns, whose `attention_mask` says what is padding, on either side.
        inputs: A tensor, or a tuple or dict of arguments; an `attention_mask` [batch, pos] among them marks padding. Exactly
            one of `tokens` and `inputs` is given.

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
    device = device_for_inputs(adapter.module)
    arguments = _from_tokens(adapter, tokens) if tokens is not None else _from_inputs(adapter, inputs)
    return arguments.map(lambda tensor: tensor.to(device))


def read_either(adapter: Adapter, data: Any) -> ModelInputs:
    """Read what may be tokens or inputs: texts, rows of ids, an integer matrix or an encoding are tokens.

    Tensors of other kinds, tuples and dicts of arguments are inputs. Errors are those of `read_inputs`.
    """
    if isinstance(data, Tensor):
        is_tokens = data.dim() == 2 and _holds_integers(data)
    else:
        is_tokens = "input_ids" in data if isinstance(data, Mapping) else not isinstance(data, tuple)
    return read_inputs(adapter, data, None) if is_tokens else read_inputs(adapter, None, data)


def _from_tokens(adapter: Adapter, tokens: Any) -> ModelInputs:
    if isinstance(tokens, Mapping) and "input_ids" in tokens:
        return _from_encoding(adapter, tokens)
    if not isinstance(tokens, Tensor):
        return _from_column(adapter, tokens)
    if not _holds_integers(tokens):
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
    return ModelInputs((tokens.long(),), {})


def _from_encoding(adapter: Adapter, encoding: Mapping) -> ModelInputs:
    """What a tokenizer returns: ids of one length with a mask, as tensors or not, or lists of several lengths."""
    ids = _as_tensor(encoding["input_ids"])
    inputs = _from_tokens(adapter, ids)
    if "attention_mask" not in encoding or not isinstance(ids, Tensor):
        return inputs
    mask = _read_mask(_as_tensor(encoding["attention_mask"]), inputs)
    return ModelInputs(inputs.args, {} if mask is None else adapter.padding(mask), mask)


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
    tokens = inputs.tokens
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


def count_runs(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Count the runs of real positions in each row."""
    return mask[:, :1].long().sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)


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
    return ModelInputs((tokens,), {}) if mask.all() else ModelInputs((tokens,), adapter.padding(mask), mask)


def _from_inputs(adapter: Adapter, inputs: Any) -> ModelInputs:
    if isinstance(inputs, Mapping):
        arguments = ModelInputs((), dict(inputs))
    else:
        arguments = ModelInputs(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})
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
    mask = arguments.kwargs.get("attention_mask")
    is_mask = isinstance(mask, Tensor) and mask.dim() == 2 and arguments.tokens is not None
    return replace(arguments, mask=_read_mask(mask, arguments)) if is_mask else arguments


def check_tokens(adapter: Adapter, inputs: ModelInputs) -> None:
    """Refuse token ids that the model does not know, where the arguments are known to be tokens.

    Raises:
        InputError: An id lies outside the vocabulary, or a row is longer than the context.
    """
    keywords = [key for key in inputs.kwargs if key not in _NO_TOKENS]
    if inputs.tokens is not None and ("input_ids" in keywords or len(inputs.args) + len(keywords) == 1):
        _check_ids(adapter, inputs.tokens)
