"""What the model is run on: tokens, or anything that a plain module takes, with the samples on the first axis."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from param_features.adapters import Adapter
from param_features.errors import InputError, NonFiniteError


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
        """The first integer matrix among the arguments, None without one."""
        return next((t for t in self.tensors if t.dim() == 2 and not t.is_floating_point() and t.dtype != torch.bool), None)

    @property
    def n_pos(self) -> int:
        """Positions of each sequence, padding included; 1 without tokens."""
        return 1 if self.tokens is None else self.tokens.shape[1]

    @property
    def token_rows(self) -> list[list[int]]:
        """Every row's token ids without its padding; empty without tokens."""
        if self.tokens is None:
            return []
        rows, mask = self.tokens.tolist(), self.mask
        return rows if mask is None else [row[: int(real.sum())] for row, real in zip(rows, mask, strict=True)]

    def __len__(self) -> int:
        """Size of the batch."""
        return len(self.tensors[0])

    def map(self, function) -> "ModelInputs":
        """Apply `function` to every tensor."""
        change = lambda value: function(value) if isinstance(value, Tensor) else value  # noqa: E731
        args, kwargs = tuple(map(change, self.args)), {key: change(value) for key, value in self.kwargs.items()}
        return ModelInputs(args, kwargs, None if self.mask is None else function(self.mask))

    def rows(self, index: Any) -> "ModelInputs":
        """Choose rows of the batch."""
        return self.map(lambda tensor: tensor[index.to(tensor.device) if isinstance(index, Tensor) else index])


def read_inputs(adapter: Adapter, tokens: Any, inputs: Any) -> ModelInputs:
    """Turn what the user gave into `ModelInputs`, refusing what the model cannot take.

    Args:
        adapter: Knows the vocabulary and the tokenizer.
        tokens: Integers [batch, pos]; or strings, tokenised one by one and padded on the right; or a column of either.
        inputs: A tensor, or a tuple or dict of arguments. Exactly one of `tokens` and `inputs` is given.

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
    device = next((p.device for p in adapter.module.parameters()), torch.device("cpu"))
    found = _from_tokens(adapter, tokens) if tokens is not None else _from_inputs(adapter, inputs)
    return found.map(lambda tensor: tensor.to(device))


def _from_tokens(adapter: Adapter, tokens: Any) -> ModelInputs:
    if not isinstance(tokens, Tensor):
        return _from_column(adapter, tokens)
    if tokens.is_floating_point() or tokens.dtype == torch.bool or tokens.is_complex():
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


def _check_ids(adapter: Adapter, tokens: Tensor) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if adapter.d_vocab is not None and (low < 0 or high >= adapter.d_vocab):
        bad = low if low < 0 else high
        row, pos = (tokens == bad).nonzero()[0].tolist()
        raise InputError(
            f"tokens[{row}, {pos}] is {bad}. The model's vocabulary has ids 0 to {adapter.d_vocab - 1}. Were the tokens "
            "made with another tokenizer?"
        )
    if adapter.n_ctx is not None and tokens.shape[1] > adapter.n_ctx:
        raise InputError(
            f"tokens have {tokens.shape[1]} positions; the model's context has {adapter.n_ctx}. Cut the sequences: "
            f"tokens[:, :{adapter.n_ctx}], or [row[:{adapter.n_ctx}] for row in rows]."
        )


def _from_column(adapter: Adapter, column: Any) -> ModelInputs:
    """A list or `datasets` column of strings or of id sequences."""
    if isinstance(column, str | bytes | Mapping) or not isinstance(column, Sequence) and not hasattr(column, "__getitem__"):
        raise InputError(
            f"tokens is a {type(column).__name__}. Give an integer tensor [batch, pos], a list of strings, or a column of "
            'a dataset such as dataset["text"].'
        )
    rows = [adapter.to_ids(row) if isinstance(row, str) else _ids(row) for row in column]
    if not rows or not all(rows):
        raise InputError(f"tokens has {len(rows)} rows, {sum(not row for row in rows)} of them empty. Leave empty rows out.")
    return _padded(adapter, rows)


def _ids(row: Any) -> list[int]:
    values = row.tolist() if hasattr(row, "tolist") else row
    if not isinstance(values, Sequence):
        raise InputError(f"A row of tokens is {values!r}. Rows are strings or sequences of integer ids.")
    values = list(values)
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"A row of tokens starts {values[:5]!r}. Rows are strings or sequences of integer ids.")
    return values


def _padded(adapter: Adapter, rows: list[list[int]]) -> ModelInputs:
    """Pad on the right, which a causal model's earlier positions cannot see; the mask says what is real."""
    width = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    _check_ids(adapter, tokens)
    return ModelInputs((tokens,), {}, None if mask.all() else mask)


def _from_inputs(adapter: Adapter, inputs: Any) -> ModelInputs:
    if isinstance(inputs, Mapping):
        found = ModelInputs((), dict(inputs))
    else:
        found = ModelInputs(tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,), {})
    sizes = {tuple(tensor.shape[:1]) for tensor in found.tensors}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise InputError(
            f"inputs hold tensors of shapes {[tuple(t.shape) for t in found.tensors]}. Every tensor needs the batch as its "
            "first axis, the same in all, and at least one row."
        )
    for tensor in found.tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFiniteError(f"inputs of shape {tuple(tensor.shape)} hold NaN or infinity. Clean the data first.")
    if found.tokens is not None and len(found.tensors) == 1:
        _check_ids(adapter, found.tokens)
    return found
