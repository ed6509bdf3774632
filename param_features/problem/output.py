"""What the model's output looks like on given inputs, and whether it can be decomposed."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from param_features.errors import InputError, ModelStateError, OutputError, ParamFeaturesError, SettingError
from param_features.params import Adapter, held_still, packed_layers
from param_features.problem.arguments import DECODER_TOKENS, ModelInputs
from param_features.problem.divergence import KL, Divergence

_MIXING = {torch.bfloat16: 0.1, torch.float16: 0.05}


@dataclass(frozen=True)
class OutputInfo:
    """What the model's output looks like on the given inputs.

    Attributes:
        shape: Shape for a batch of one or two.
        dtype: Its dtype.
        is_logits: Whether it is known to be logits over a vocabulary or classes.
        per_position: Whether a sample is a position of an output [batch pos d_output]; otherwise it is an input.
        has_tokens: Whether a token of the inputs stands at each of these positions.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    is_logits: bool
    per_position: bool
    has_tokens: bool = True

    @property
    def d_output(self) -> int:
        """Numbers per sample that the divergence compares."""
        return self.shape[-1] if self.per_position else int(torch.Size(self.shape[1:]).numel())

    def sampled(self, divergence: Divergence, positions: Any) -> "OutputInfo":
        """The same output, of which a sample is a position where KL compares it, or positions are chosen.

        Raises:
            OutputError: It then has more axes than [batch pos d_output].
            SettingError: It has fewer, and positions are chosen.
        """
        is_chosen = not isinstance(positions, str) or positions != "all"
        if is_chosen and len(self.shape) < 3:
            raise SettingError(
                f"positions={positions!r}, but the output of shape {self.shape} has no positions: a sample is an input. "
                "Leave positions= out."
            )
        if len(self.shape) < 3 or not (is_chosen or isinstance(divergence, KL)):
            return self
        if len(self.shape) > 3:
            raise OutputError(
                f"The output has shape {self.shape}. Accepted for {divergence.name!r}: [batch, d_output], with a sample for "
                "each input, or [batch, pos, d_output], with one for each position. Say what it is: of classes at places, "
                "[batch, class, height, width], output=lambda out: out.logits.flatten(2).mT makes every place a sample."
            )
        return replace(self, per_position=True)


def inspect_output(adapter: Adapter, inputs: ModelInputs) -> OutputInfo:
    """Run two rows without gradients and say what came out.

    Raises:
        OutputError: The model returned neither a tensor nor an object with `.logits`.
        InputError: The model cannot be run on these inputs, or the output has no batch axis.
        ModelStateError: A row's output depends on the other rows of its batch.
    """
    rows = inputs.rows(slice(0, 2))
    with held_still(adapter.module), torch.no_grad():
        returned = _first_run(adapter, rows)
        output = adapter.tensor_of(returned)
        first = rows.rows(slice(0, 1))
        alone = _run_alone(adapter, first) if len(rows) > 1 else None
    if output.dim() == 0 or len(output) != len(rows):
        raise InputError(
            f"The output has shape {tuple(output.shape)} for {len(rows)} inputs. Its first axis must be the batch: a "
            "divergence is taken for each sample, never averaged over them."
        )
    if alone is not None:
        _refuse_mixing(adapter, output[:1], alone)
    has_positions, ids = output.dim() == 3, inputs.ids
    is_encoders = inputs.decoder_tokens is None and any(name in DECODER_TOKENS for name in adapter.call_names)
    has_tokens = has_positions and ids is not None and output.shape[1] == ids.shape[1] and not is_encoders
    is_of_vocabulary = has_positions and (adapter.d_vocab == output.shape[-1] or (adapter.d_vocab is None and has_tokens))
    is_named = adapter.given_output is None and adapter.predicts_tokens
    is_logits = is_of_vocabulary or is_named or output is getattr(returned, "logits", None)
    per_position = has_positions and (has_tokens or is_logits)
    return OutputInfo(tuple(output.shape), output.dtype, is_logits, per_position, has_tokens)


def _first_run(adapter: Adapter, rows: ModelInputs) -> Any:
    try:
        return adapter.call(*rows.args, **rows.kwargs)
    except (ParamFeaturesError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        given = "inputs" if rows.tokens is None else "tokens"
        raise InputError(
            f"The model cannot be run on these {given}: {error}. Give what the model itself takes, with the batch first."
        ) from error


def _run_alone(adapter: Adapter, row: ModelInputs) -> Tensor:
    try:
        return adapter.run(*row.args, **row.kwargs)
    except (RuntimeError, ValueError) as error:
        raise ModelStateError(
            f"The model runs on two inputs but not on one alone ({error}). Gradients are those of single inputs: give "
            "BatchNorm running statistics, or leave out what compares inputs."
        ) from error


def _refuse_mixing(adapter: Adapter, together: Tensor, alone: Tensor) -> None:
    """Refuse a model whose rows influence each other: the gradient of one sample would mean nothing."""
    tolerance = _MIXING.get(together.dtype, 0.01)
    if together.shape != alone.shape or bool((together - alone).norm() > tolerance * alone.norm() + 1e-6):
        packed = packed_layers(adapter.module)
        way_out = "give BatchNorm running statistics, or leave out what compares inputs"
        if packed:
            way_out = f"{packed[0]!r} is quantised and may share one scale among them; decompose the model before that"
        raise ModelStateError(
            "The output of the first input is another one when a second input is in the batch. The rows of a batch must not "
            f"influence each other: {way_out}."
        )
