"""Which examples train which features: what one step of gradient descent on each would do along each direction."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.circuits import CircuitSubject, read_metric, weight_group
from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public

_BATCH = 64


@dataclass(frozen=True, eq=False)
class Pushes:
    """How far one step of gradient descent on each training example moves along each feature.

    Attributes:
        values: −∂loss/∂(step along v_k) of each row: what gradient descent on that row alone adds along each direction, per
            unit of learning rate; loss units per unit step.
        losses: Of each row.
        strings: Each row's tokens; empty in a model without tokens.
    """

    values: Float[Tensor, "row feature"]
    losses: Float[Tensor, " row"]
    strings: tuple[tuple[str, ...], ...]

    @property
    def mean(self) -> Float[Tensor, " feature"]:
        """What gradient descent on all rows together does along each direction."""
        return self.values.mean(0)

    @public
    def top_features(self, n: int = 10) -> list[tuple[int, float]]:
        """Features that these rows train most, either sign, and the mean push along each."""
        order = self.mean.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(k, float(self.mean[k])) for k in order]

    @public
    def top_rows(self, feature: int, n: int = 10) -> list[tuple[int, float]]:
        """Rows that push a feature most, either sign, and how far.

        Raises:
            SettingError: There is no such feature.
        """
        if not 0 <= feature < self.values.shape[1]:
            raise SettingError(f"There is no feature {feature}. Features are numbered 0 to {self.values.shape[1] - 1}.")
        push = self.values[:, feature]
        return [(row, float(push[row])) for row in push.abs().argsort(descending=True, stable=True)[:n].tolist()]

    def __repr__(self) -> str:
        """The features that are trained most."""
        largest = ", ".join(f"{k}: {push:+.3g}" for k, push in self.top_features(5))
        return f"Pushes of {len(self.values)} rows on {self.values.shape[1]} features; largest means {largest}"


@public
@own_modes()
def pushes(features: Fitted, tokens: Any = None, *, inputs: Any = None, loss: Any = "loss") -> Pushes:
    """Which features some examples train, and which examples push a feature most.

    Cost: a forward and a backward pass for all features.

    Args:
        features: Bound to a model.
        tokens: Rows [row, pos], or strings; the features' own held-out examples by default.
        inputs: Instead of tokens, anything that the module takes.
        loss: What training descends: `"loss"`, the mean cross-entropy of the tokens that follow, or a function of the
            model's output to one number for each row, called on 64 rows at a time, or another metric of `pf.circuit`.

    Raises:
        NotBoundError: The features were loaded without a model.
        AdapterError: A parameter has no layer rule.
        InputError: Inputs that the model cannot take, or too short for the loss.
        OutputError: The loss does not give one number for each row.
        SettingError: The loss is none of these.
    """
    group = weight_group(features, "features", has_error=False)
    adapter, metric = features.bound_engine("pushes").adapter, read_metric(loss)
    rows = features.inputs_or_examples(tokens, inputs)
    parts = [_of_batch(CircuitSubject(adapter, (group,), rows.rows(batch), metric)) for batch in _batches(len(rows))]
    values, losses = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    strings = tuple(tuple(adapter.to_strings(row)) for row in rows.token_rows)
    return Pushes(-values, losses, strings)


def _batches(n: int) -> list[slice]:
    return [slice(start, start + _BATCH) for start in range(0, n, _BATCH)]


def _of_batch(subject: CircuitSubject) -> tuple[Tensor, Tensor]:
    slopes = subject.slopes()
    return subject.joined(slopes.by_node), slopes.values.double().cpu()
