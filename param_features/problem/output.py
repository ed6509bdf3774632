"""What the model's output looks like on given inputs, and whether it can be decomposed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from param_features.errors import InputError, ModelStateError
from param_features.params import Adapter, held_still
from param_features.problem.inputs import ModelInputs

_MIXING = {torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class OutputInfo:
    """What the model's output looks like on the given inputs.

    Attributes:
        shape: Shape for a batch of one or two.
        dtype: Its dtype.
        is_logits: Whether it is known to be logits over a vocabulary or classes.
        per_position: Whether a sample is a (sequence, position); otherwise it is an input.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_logits: bool
    per_position: bool

    @property
    def d_output(self) -> int:
        """Numbers per sample that the divergence compares."""
        return self.shape[-1] if self.per_position else int(torch.Size(self.shape[1:]).numel())


def inspect_output(adapter: Adapter, inputs: ModelInputs) -> OutputInfo:
    """Run two rows without gradients and say what came out.

    Raises:
        OutputError: The model returned neither a tensor nor an object with `.logits`.
        InputError: The output has no batch axis.
        ModelStateError: A row's output depends on the other rows of its batch.
    """
    rows = inputs.rows(slice(0, 2))
    with held_still(adapter.module), torch.no_grad():
        returned = adapter.call(*rows.args, **rows.kwargs)
        output = adapter.tensor_of(returned)
        first = rows.rows(slice(0, 1))
        alone = _run_alone(adapter, first) if len(rows) > 1 else None
    if output.dim() == 0 or len(output) != len(rows):
        raise InputError(
            f"The output has shape {tuple(output.shape)} for {len(rows)} inputs. Its first axis must be the batch: a "
            "divergence is taken for each sample, never averaged over them."
        )
    if alone is not None:
        _refuse_mixing(output[:1], alone)
    tokens = inputs.tokens
    per_position = tokens is not None and output.dim() == 3 and output.shape[1] == tokens.shape[1]
    is_of_vocabulary = per_position and adapter.d_vocab in (None, output.shape[-1])
    is_named = adapter.given_output is None and adapter.predicts_tokens
    is_logits = is_of_vocabulary or is_named or output is getattr(returned, "logits", None)
    return OutputInfo(tuple(output.shape), output.dtype, is_logits, per_position)


def _run_alone(adapter: Adapter, row: ModelInputs) -> Tensor:
    try:
        return adapter.run(*row.args, **row.kwargs)
    except (RuntimeError, ValueError) as error:
        raise ModelStateError(
            f"The model runs on two inputs but not on one alone ({error}). Gradients are those of single inputs: give "
            "BatchNorm running statistics, or leave out what compares inputs."
        ) from error


def _refuse_mixing(together: Tensor, alone: Tensor) -> None:
    """Refuse a model whose rows influence each other: the gradient of one sample would mean nothing."""
    tolerance = _MIXING.get(together.dtype, 0.01)
    if together.shape != alone.shape or bool((together - alone).norm() > tolerance * alone.norm() + 1e-6):
        raise ModelStateError(
            "The output of the first input is another one when a second input is in the batch. The rows of a batch must not "
            "influence each other: give BatchNorm running statistics, or leave out what compares inputs."
        )
