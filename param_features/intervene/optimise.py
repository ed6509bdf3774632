"""One loop of steps for whatever is trainable: coefficients of features, of random directions, or LoRA's factors."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from param_features.errors import NonFiniteError, SettingError
from param_features.intervene.objective import Objective
from param_features.intervene.task import ModelRun


class TrainingReading(NamedTuple):
    """Loss and off-target divergence at one point of a training.

    Attributes:
        step: Steps taken.
        loss: On the data to be learned, all of it.
        off_target: Mean divergence from the original model on the other data, per position.
    """

    step: int
    loss: float
    off_target: float


@dataclass(frozen=True)
class Trainable:
    """Numbers that can be trained, and the model that runs with them.

    Attributes:
        tensors: Leaves that gradients flow to; at their start the model is the original.
        run: The model moved by their present values.
        placed: A block in which the model has the weights of `run`, for backward passes that run layers again.
    """

    tensors: tuple[Tensor, ...]
    run: ModelRun
    placed: Callable[[], AbstractContextManager] = nullcontext

    @property
    def n_numbers(self) -> int:
        """How many numbers there are to train."""
        return sum(tensor.numel() for tensor in self.tensors)


@dataclass(frozen=True)
class Budget:
    """How long, how fast and on how much a training runs; the same for everything that is compared.

    Attributes:
        steps: Of Adam.
        lr: Its learning rate.
        batch_size: Rows per step.
        seed: Of the rows drawn.
        n_readings: How many times on the way loss and off-target divergence are read.
    """

    steps: int
    lr: float
    batch_size: int
    seed: int
    n_readings: int

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        for name in ("steps", "lr", "batch_size", "n_readings"):
            if not getattr(self, name) > 0:
                raise SettingError(f"{name}={getattr(self, name)} must be above 0.")


def train(
    objective: Objective, trainable: Trainable, budget: Budget, *, progress: bool, title: str
) -> list[TrainingReading]:
    """Train the numbers in place by Adam; Ctrl-C ends it early and keeps what is reached.

    Returns:
        Readings, the first before any step, the last after the last one.

    Raises:
        NonFiniteError: The objective became NaN or infinite.
    """
    optimiser = torch.optim.Adam(list(trainable.tensors), lr=budget.lr)
    generator = torch.Generator().manual_seed(budget.seed)
    read_at = _spread(budget.steps, budget.n_readings)
    readings, n_done = [_reading(objective, trainable, 0, budget)], 0
    with tqdm(total=budget.steps, desc=title, unit="step", disable=not progress, file=sys.stderr) as bar:
        try:
            while n_done < budget.steps:
                _step(objective, trainable, optimiser, budget, generator)
                n_done += 1
                bar.update()
                if n_done in read_at:
                    readings.append(_reading(objective, trainable, n_done, budget))
        except KeyboardInterrupt:
            bar.write(f"Interrupted after {n_done} of {budget.steps} steps: keeping what is reached.", file=sys.stderr)
    if readings[-1].step != n_done:
        readings.append(_reading(objective, trainable, n_done, budget))
    return readings


def _step(
    objective: Objective, trainable: Trainable, optimiser: torch.optim.Optimizer, budget: Budget, generator: torch.Generator
) -> None:
    value = objective.value(trainable.run, budget.batch_size, generator)
    if not bool(torch.isfinite(value)):
        raise NonFiniteError(
            f"The loss became {float(value.detach())} at lr={budget.lr:g}. Take a smaller one, such as {budget.lr / 10:g}, "
            "and check that the loss is finite on the model as it is."
        )
    with trainable.placed():
        gradients = torch.autograd.grad(value, list(trainable.tensors))
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise NonFiniteError(
            f"The loss is finite and its gradient is not, at lr={budget.lr:g}: the model turns NaN into numbers. Take a "
            f"smaller lr, such as {budget.lr / 10:g}."
        )
    for tensor, gradient in zip(trainable.tensors, gradients, strict=True):
        tensor.grad = gradient
    optimiser.step()


def _reading(objective: Objective, trainable: Trainable, step: int, budget: Budget) -> TrainingReading:
    with torch.no_grad():
        loss = objective.task.mean(trainable.run, budget.batch_size)
        off_target = objective.off_target.mean(trainable.run, budget.batch_size)
    return TrainingReading(step, loss, off_target)


def _spread(n_steps: int, n_readings: int) -> set[int]:
    """Steps after which to read, the last among them; closer together at the start, where most is learned."""
    return {max(1, round(n_steps * (part / n_readings) ** 2)) for part in range(1, n_readings + 1)}


def off_target_at(readings: Sequence[TrainingReading], gain: float) -> float | None:
    """The least off-target divergence at which the loss has fallen by `gain`, between readings by straight lines.

    A path may cross a gain several times; the best crossing counts. None where it never does.
    """
    start, crossings = readings[0].loss, []
    for first, second in zip(readings, readings[1:], strict=False):
        low, high = start - first.loss, start - second.loss
        if low == high or not min(low, high) <= gain <= max(low, high):
            continue
        share = (gain - low) / (high - low)
        crossings.append(first.off_target + share * (second.off_target - first.off_target))
    return min(crossings) if crossings else None
