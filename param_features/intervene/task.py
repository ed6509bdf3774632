"""What is to be learned: rows of data, which of their tokens count, and the loss."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from param_features.errors import InputError, OutputError
from param_features.gradients import GradientEngine, at_least_float32
from param_features.params import Adapter
from param_features.problem import ModelInputs, read_inputs

ModelRun = Callable[[ModelInputs], Tensor]
"""The model with its weights moved: inputs to the output tensor."""

Loss = Callable[..., Tensor]
"""(output, batch) -> scalar, or (output, batch, targets) -> scalar where targets are given."""


@dataclass(frozen=True)
class Task:
    """What is to be learned: the data, and the loss that is taken on them.

    Attributes:
        inputs: Every row.
        counted: Tokens whose prediction counts, for next-token loss.
        targets: What a user's loss is given beside the output, rows first; None where it takes none.
        loss: The user's; None for next-token loss.
    """

    inputs: ModelInputs
    counted: Bool[Tensor, "batch pos"] | None = None
    targets: Tensor | None = None
    loss: Loss | None = None

    def value(self, run: ModelRun, index: Int[Tensor, " row"]) -> tuple[Tensor, int]:
        """The loss on some rows, and its weight in a mean: counted tokens, or rows where the loss is the user's.

        Raises:
            OutputError: The user's loss gives no scalar.
        """
        batch = self.inputs.rows(index)
        output = run(batch)
        if self.loss is None:
            assert self.counted is not None and batch.tokens is not None, "next-token loss has tokens"
            return next_token_loss(output, batch.tokens, self.counted[index.to(self.counted.device)])
        args = () if self.targets is None else (self.targets[index.to(self.targets.device)].to(output.device),)
        value = self.loss(output, _batch_for_loss(batch), *args)
        if not isinstance(value, Tensor) or value.numel() != 1:
            returned = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OutputError(
                f"loss returned {returned}. It must return one number, a tensor that gradients flow through, such as the "
                "mean over the batch."
            )
        return value.reshape(()), len(index)

    def mean(self, run: ModelRun, batch_size: int) -> float:
        """The mean loss over all rows."""
        parts = [self.value(run, index) for index in chunks(len(self.inputs), batch_size)]
        return sum(float(value) * weight for value, weight in parts) / sum(weight for _, weight in parts)


def next_token_loss(
    output: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"], counted: Bool[Tensor, "batch pos"]
) -> tuple[Float[Tensor, ""], int]:
    """Mean cross-entropy in nats of the counted tokens, each predicted from those before it, and how many they are."""
    labels = torch.where(counted[:, 1:].to(tokens.device), tokens[:, 1:], -100)
    logits = at_least_float32(output[:, :-1])
    n_counted = int((labels != -100).sum())
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / max(n_counted, 1), n_counted


def read_task(
    engine: GradientEngine, data: Any, inputs: Any, *, where: Any = None, targets: Tensor | None = None, loss: Loss | None
) -> Task:
    """Read the data to be learned, and check that the loss fits them.

    Raises:
        InputError: No token's prediction counts, or rows and masks or targets do not go together.
    """
    pairs = _pairs(data)
    texts = data if pairs is None else [prompt + completion for prompt, completion in pairs]
    rows = read_inputs(engine.adapter, texts, inputs)
    if targets is not None and (loss is None or len(targets) != len(rows)):
        raise InputError(
            f"targets hold {len(targets)} rows beside {len(rows)} inputs, and loss= is {'not ' if loss is None else ''}"
            "given. They are handed to loss(output, batch, targets), one row for each input."
        )
    if loss is not None:
        return Task(rows, targets=targets, loss=loss)
    if not (engine.per_position and engine.positions.have_tokens) or rows.tokens is None:
        raise InputError(
            "The model gives no logits for each token, so there is no next-token loss. Give loss= a function of (output, "
            "batch) to one number; targets= are handed to it too."
        )
    starts = None if pairs is None else _starts(engine.adapter, [prompt for prompt, _ in pairs], rows)
    return Task(rows, _counted(rows, where, starts))


def chunks(n_rows: int, size: int) -> Iterator[Tensor]:
    """The numbers of all rows, in batches of `size`."""
    return iter(torch.arange(n_rows).split(size))


def _batch_for_loss(batch: ModelInputs) -> Any:
    """What the user's loss gets as `batch`: tokens, or the one tensor that the model takes, or else all of its arguments."""
    if batch.tokens is not None:
        return batch.tokens
    return batch.tensors[0] if len(batch.tensors) == 1 else batch


def _pairs(data: Any) -> list[tuple[str, str]] | None:
    """(prompt, completion) pairs of strings, None where the data are something else."""
    is_rows = isinstance(data, Sequence) and not isinstance(data, str | bytes) and len(data) > 0
    if not is_rows or not all(
        isinstance(row, tuple) and len(row) == 2 and all(isinstance(s, str) for s in row) for row in data
    ):
        return None
    return list(data)


def _starts(adapter: Adapter, prompts: list[str], inputs: ModelInputs) -> list[int]:
    """How many leading tokens each whole text shares with its prompt."""
    starts = []
    for prompt, row in zip(prompts, inputs.token_rows, strict=True):
        ids = adapter.to_ids(prompt)
        n_same = next((i for i, (a, b) in enumerate(zip(ids, row, strict=False)) if a != b), min(len(ids), len(row)))
        starts.append(n_same)
    return starts


def _counted(inputs: ModelInputs, where: Any, starts: list[int] | None) -> Bool[Tensor, "batch pos"]:
    """True at each token whose prediction counts: real ones but the first, marked by `where`, behind their row's start."""
    assert inputs.tokens is not None, "next-token loss has tokens"
    counted = torch.ones(inputs.tokens.shape, dtype=torch.bool) if inputs.mask is None else inputs.mask.cpu().clone()
    counted[:, 1:] &= counted[:, :-1].clone()
    counted[:, 0] = False
    if where is not None:
        if not isinstance(where, Tensor) or where.shape != counted.shape:
            raise InputError(
                f"where has shape {tuple(getattr(where, 'shape', ()))} and the tokens {tuple(counted.shape)}. Give a tensor "
                "of the tokens' shape, True at each token whose prediction counts."
            )
        counted &= where.cpu().bool()
    for row, start in enumerate(starts or ()):
        counted[row].scatter_(0, inputs.places[row, :start], False)
    if not bool(counted.any(1).all()):
        row = int((~counted.any(1)).nonzero()[0])
        raise InputError(
            f"Row {row} has no token whose prediction counts. Each row needs one after its first token, marked by where= or "
            "part of a completion."
        )
    return counted
