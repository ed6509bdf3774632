"""What a circuit explains: one number for each prompt, computed from the model's output."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.errors import InputError, NonFiniteError, OutputError, SettingError
from param_features.params import Adapter
from param_features.problem import ModelInputs

Values = Callable[[Tensor], Float[Tensor, " row"]]
"""The model's output to one number for each row."""

Token = str | int


class Metric(ABC):
    """A number for each prompt; larger is more of what is explained."""

    unit: str

    @property
    @abstractmethod
    def name(self) -> str:
        """What the metric is, in a few words."""

    @abstractmethod
    def on(self, adapter: Adapter, inputs: ModelInputs) -> Values:
        """Make the metric a function of these prompts' output."""


@dataclass(frozen=True)
class LogitDifference(Metric):
    """The logit of the right token less that of the wrong one, at each prompt's last real position.

    Attributes:
        right: A token as text or id, or one for each prompt.
        wrong: The same.
    """

    right: Any
    wrong: Any
    unit = "logits"

    @property
    def name(self) -> str:
        """The name says the tokens."""
        return f"logit difference {_token_text(self.right)} − {_token_text(self.wrong)}"

    def on(self, adapter: Adapter, inputs: ModelInputs) -> Values:
        """See `Metric`."""
        right, wrong = (token_ids(adapter, tokens, len(inputs)) for tokens in (self.right, self.wrong))

        def values(output: Tensor) -> Tensor:
            logits = last_logits(output, inputs)
            return (_picked(logits, right) - _picked(logits, wrong)).to(logits)

        return values


@dataclass(frozen=True)
class LogProbability(Metric):
    """The log-probability of a token at each prompt's last real position.

    Attributes:
        token: As text or id, or one for each prompt.
    """

    token: Any
    unit = "nats"

    @property
    def name(self) -> str:
        """The name says the token."""
        return f"log-probability of {_token_text(self.token)}"

    def on(self, adapter: Adapter, inputs: ModelInputs) -> Values:
        """See `Metric`."""
        ids = token_ids(adapter, self.token, len(inputs))
        return lambda output: _picked(last_logits(output, inputs).log_softmax(-1), ids)


@dataclass(frozen=True)
class NextTokenLoss(Metric):
    """The mean cross-entropy of the tokens that really follow, over each prompt's real positions: less is better."""

    unit = "nats"

    @property
    def name(self) -> str:
        """See `Metric`."""
        return "next-token loss"

    def on(self, adapter: Adapter, inputs: ModelInputs) -> Values:
        """See `Metric`."""
        tokens = inputs.tokens
        if tokens is None or tokens.shape[1] < 2:
            raise InputError("The next-token loss needs prompts of two tokens or more. Give another metric.")
        is_counted = torch.ones_like(tokens, dtype=torch.bool) if inputs.mask is None else inputs.mask
        is_counted = is_counted[:, 1:] & is_counted[:, :-1]

        def values(output: Tensor) -> Tensor:
            losses = next_token_losses(output, tokens)
            weight = is_counted.to(losses)
            return (losses * weight).sum(1) / weight.sum(1).clamp(min=1)

        return values


def next_token_losses(logits: Float[Tensor, "row pos vocab"], tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row next"]:
    """Compute the cross-entropy of every token but each row's first, in nats."""
    return -logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:, None].to(logits.device))[..., 0]


@dataclass(frozen=True)
class CustomMetric(Metric):
    """A user's function of the model's whole output to one number for each prompt."""

    function: Callable[..., Any]
    unit = "units of the given function"

    @property
    def name(self) -> str:
        """The name of the function."""
        return getattr(self.function, "__name__", "metric").replace("<lambda>", "metric")

    def on(self, adapter: Adapter, inputs: ModelInputs) -> Values:
        """See `Metric`."""
        return self.function


def read_metric(metric: Any) -> Metric:
    """Read what the user means by a metric: one of this file's, `"loss"`, or a function.

    Raises:
        SettingError: It is none of these.
    """
    if isinstance(metric, Metric):
        return metric
    if metric == "loss":
        return NextTokenLoss()
    if not callable(metric):
        raise SettingError(
            f"metric={metric!r} is unknown. Accepted: 'loss', pf.circuits.LogitDifference(right, wrong), "
            "pf.circuits.LogProbability(token), or a function of the model's output to one number for each prompt."
        )
    return CustomMetric(metric)


def checked_values(values: Tensor, n_rows: int, name: str) -> Float[Tensor, " row"]:
    """Return a metric's values, once checked to be one finite number for each prompt.

    Raises:
        OutputError: They have another shape.
        NonFiniteError: One is NaN or infinite.
    """
    if not isinstance(values, Tensor) or values.shape != (n_rows,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise OutputError(f"The metric {name!r} returned {shape} for {n_rows} prompts. It must return one number for each.")
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(f"The metric {name!r} is NaN or infinite on a prompt. Check the metric and the prompts.")
    return values


def last_logits(output: Tensor, inputs: ModelInputs) -> Float[Tensor, "row vocab"]:
    """Take each prompt's logits at its last real position."""
    if output.dim() != 3:
        raise InputError(
            f"This metric reads logits [prompt, position, vocabulary], and the output has shape {tuple(output.shape)}. Give "
            "a function of the output as metric=."
        )
    rows = torch.arange(len(output), device=output.device)
    return output[rows, inputs.last_positions.to(output.device)]


def token_ids(adapter: Adapter, tokens: Token | Sequence[Token] | Tensor, n_rows: int) -> Int[Tensor, " row"]:
    """Read one token's id for each prompt.

    Raises:
        InputError: A text is not one token, or there are not as many as prompts.
    """
    listed = tokens.tolist() if isinstance(tokens, Tensor) else tokens
    if isinstance(listed, str | int):
        return torch.tensor([_token_id(adapter, listed)]).expand(n_rows)
    if len(listed) != n_rows:
        raise InputError(f"{len(listed)} tokens are given for {n_rows} prompts. Give one token, or one for each prompt.")
    return torch.tensor([_token_id(adapter, token) for token in listed])


def _token_id(adapter: Adapter, token: Token) -> int:
    if isinstance(token, int):
        if adapter.d_vocab is not None and not 0 <= token < adapter.d_vocab:
            raise InputError(f"Token {token} is not in the vocabulary of {adapter.d_vocab}.")
        return token
    ids = adapter.to_ids(token)  # some tokenizers put a token in front that begins every text
    matching = [number for number in ids if adapter.to_strings([number]) == [token]]
    if len(matching) != 1:
        raise InputError(
            f"{token!r} is no single token here: it is read as {adapter.to_strings(ids)}. Give a text that is one token "
            "(mind the space before a word), or its id."
        )
    return matching[0]


def _picked(logits: Float[Tensor, "row vocab"], ids: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
    return logits.gather(1, ids.to(logits.device).unsqueeze(1))[:, 0]


def _token_text(tokens: Any) -> str:
    """Write one token, or the different ones of all prompts, three at most."""
    if isinstance(tokens, str | int):
        return repr(tokens)
    distinct = list(dict.fromkeys(tokens.tolist() if isinstance(tokens, Tensor) else tokens))
    return " / ".join(map(repr, distinct[:3])) + (" / …" if len(distinct) > 3 else "")
