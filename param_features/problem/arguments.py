"""The arguments of a model's call: tokens or other tensors, which positions are real, and which of them are samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DECODER_TOKENS = ("decoder_input_ids", "decoder_input")
"""Arguments that hold the tokens at the outputs' positions, in a model with an encoder and a decoder."""

_NO_TOKENS = ("mask", "position_ids", "token_type_ids", "labels")


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """Arguments of the model's call; tensors have the batch first, other values are passed on as they are.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        mask: True where a token is real; False for padding. None when nothing is padded.
        samples: True where a position of the output is a sample. None where those of the real tokens are; see `positions=`.
        targets: True where components are looked for, or one column for all positions of a row; elsewhere what they leave
            of the weights stays whole. None for everywhere; see `targets=`.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mask: Bool[Tensor, "batch pos"] | None = None
    samples: Bool[Tensor, "batch output_pos"] | None = None
    targets: Bool[Tensor, "batch target_pos"] | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """Every tensor argument."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def is_all_tensors(self) -> bool:
        """Whether every argument is a tensor."""
        return len(self.tensors) == len(self.args) + len(self.kwargs)

    @property
    def token_matrices(self) -> dict[str, Int[Tensor, "batch pos"]]:
        """Every integer matrix among the arguments that is no mask, by name; positional ones by number."""
        named = {str(key): value for key, value in (*enumerate(self.args), *self.kwargs.items())}
        return {
            name: value
            for name, value in named.items()
            if not name.endswith(_NO_TOKENS) and isinstance(value, Tensor) and value.dim() == 2 and holds_integers(value)
        }

    @property
    def decoder_tokens(self) -> Int[Tensor, "batch pos"] | None:
        """The tokens of a decoder beside an encoder; None without them."""
        return next((self.token_matrices[name] for name in DECODER_TOKENS if name in self.token_matrices), None)

    @property
    def ids(self) -> Int[Tensor, "batch pos"] | None:
        """A decoder's tokens, or `input_ids`, or else the first integer matrix that is no mask; None without one."""
        matrices = self.token_matrices
        first = next((name for name in (*DECODER_TOKENS, "input_ids", *matrices) if name in matrices), None)
        return None if first is None else matrices[first]

    @property
    def tokens(self) -> Int[Tensor, "batch pos"] | None:
        """The ids that stand at the output's positions; None where there are none, or they stand elsewhere."""
        ids, samples = self.ids, self.samples
        return None if ids is None or (samples is not None and samples.shape != ids.shape) else ids

    @property
    def sample_mask(self) -> Bool[Tensor, "batch pos"] | None:
        """True where a position is a sample; None where every position is."""
        return self.mask if self.samples is None else self.samples

    @property
    def n_pos(self) -> int:
        """Positions of each row, padding included; 1 where a sample is an input."""
        if self.samples is not None:
            return self.samples.shape[1]
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
        if self.mask is None or self.tokens is None:
            return torch.arange(self.n_pos).expand(len(self), self.n_pos)
        return (~self.mask.cpu()).long().argsort(dim=1, stable=True)

    @property
    def sample_places(self) -> Int[Tensor, "sample two"]:
        """Every sample's row, and its position counted without padding: where `token_rows` has its token."""
        is_sample = torch.ones(len(self), self.n_pos, dtype=torch.bool) if self.sample_mask is None else self.sample_mask
        return is_sample.cpu().gather(1, self.places).nonzero()

    @property
    def last_positions(self) -> Int[Tensor, " batch"]:
        """Where each row's last sample lies; zeros where a sample is an input."""
        if self.sample_mask is None:
            return torch.full((len(self),), self.n_pos - 1)
        return self.sample_mask.cpu().long().cumsum(1).argmax(1)

    def __len__(self) -> int:
        """How many rows the batch has."""
        return len(self.tensors[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> "ModelInputs":
        """Apply `function` to every tensor."""
        change = lambda value: function(value) if isinstance(value, Tensor) else value  # noqa: E731
        args, kwargs = tuple(map(change, self.args)), {key: change(value) for key, value in self.kwargs.items()}
        return ModelInputs(args, kwargs, change(self.mask), change(self.samples), change(self.targets))

    def rows(self, index: Any) -> "ModelInputs":
        """Choose rows of the batch."""
        return self.map(lambda tensor: tensor[index.to(tensor.device) if isinstance(index, Tensor) else index])

    def with_samples(self) -> "ModelInputs":
        """Leave out rows of which no position is a sample."""
        has_any = None if self.samples is None else self.samples.any(1)
        return self if has_any is None or bool(has_any.all()) else self.rows(has_any)

    def chosen(self, rows: Sequence[int], positions: Sequence[int]) -> tuple["ModelInputs", Int[Tensor, " row"]]:
        """Some rows, and where in each of them the given position lies, counted without padding."""
        inputs = self.rows(list(rows))
        return inputs, inputs.places.gather(1, torch.tensor(positions).unsqueeze(1))[:, 0]


def real_first(values: Float[Tensor, "batch pos feature"], inputs: ModelInputs) -> Float[Tensor, "batch pos feature"]:
    """Values by position, each row's real positions first, as in `token_rows`; on the CPU."""
    return values.cpu().gather(1, inputs.places.unsqueeze(2).expand(values.shape))


def holds_integers(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are integers."""
    return not tensor.is_floating_point() and not tensor.is_complex() and tensor.dtype != torch.bool


def count_runs(mask: Bool[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """Count the runs of real positions in each row."""
    return mask[:, :1].long().sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
