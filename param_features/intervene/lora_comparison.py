"""What a fine-tuning along features is compared with: a plain LoRA, and random directions, at equal gain."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from param_features.errors import SettingError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine
from param_features.intervene.objective import Objective
from param_features.intervene.optimise import Budget, Trainable, TrainingReading, off_target_at, train
from param_features.intervene.trainables import coefficients_of, lora_without_peft, peft_fits, peft_lora
from param_features.measure import random_like

LORA_LRS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RANDOM_FACTORS = (1 / 3, 1.0, 3.0, 10.0)
_N_READINGS = 40


class ComparisonRow(NamedTuple):
    """One way to train, with its gain and what it cost.

    Attributes:
        name: What was trained.
        n_numbers: How many numbers it trains.
        lr: The learning rate with the least off-target divergence at the gain, or else with the largest gain.
        largest_gain: Over the whole training.
        off_target_there: Where that gain is reached.
        off_target: Where its loss has fallen by the features' gain; None where it never does.
    """

    name: str
    n_numbers: int
    lr: float
    largest_gain: float
    off_target_there: float
    off_target: float | None

    @classmethod
    def of(cls, name: str, n_numbers: int, lr: float, history: Sequence[TrainingReading], gain: float) -> "ComparisonRow":
        """The row of a training that has these readings."""
        lowest = min(history, key=lambda reading: reading.loss)
        largest_gain = history[0].loss - lowest.loss
        return cls(name, n_numbers, lr, largest_gain, lowest.off_target, off_target_at(history, gain))


@dataclass(frozen=True)
class LoraComparison:
    """The table of `FineTuned.beside_lora`: off-target divergence of several ways to the same gain.

    Attributes:
        gain: By how much the loss fell with the features' coefficients.
        unit: Of the divergence.
        rows: That of the features first.
        histories: Readings by the row's name, of its best learning rate.
    """

    gain: float
    unit: str
    rows: tuple[ComparisonRow, ...]
    histories: Mapping[str, tuple[TrainingReading, ...]]

    def __getitem__(self, name: str) -> ComparisonRow:
        """The row of that name, or the first whose name starts so."""
        return next(row for row in self.rows if row.name.startswith(name))

    def __repr__(self) -> str:
        """The table, one line for each way to train."""
        head = f"at a gain of {self.gain:.4f}, off-target in {self.unit}"
        lines = [f"{'':<28}{'numbers':>8}{'lr':>9}{'off-target':>13}{'largest gain':>14}{'off-target there':>18}"]
        for row in self.rows:
            cost = "not reached" if row.off_target is None else f"{row.off_target:.4g}"
            lines.append(
                f"{row.name:<28}{row.n_numbers:>8}{row.lr:>9.2g}{cost:>13}{row.largest_gain:>14.4f}{row.off_target_there:>18.4g}"
            )
        return "\n".join([head, *lines])


@dataclass(frozen=True)
class Rivals:
    """Trains what the features are compared with: LoRA and random directions.

    Attributes:
        engine: The model.
        objective: That of the features.
        directions: Those of the features.
        budget: That of the features; rivals replace its learning rate.
        progress: Whether to show progress bars.
    """

    engine: GradientEngine
    objective: Objective
    directions: LowRank
    budget: Budget
    progress: bool

    def compare(
        self,
        history: Sequence[TrainingReading],
        unit: str,
        *,
        rank: int,
        lrs: Sequence[float],
        n_random: int,
        random_lrs: Sequence[float],
    ) -> LoraComparison:
        """Train every rival and make the table; see `FineTuned.beside_lora`.

        Raises:
            SettingError: There is no gain to compare at, or no learning rate.
        """
        gain = history[0].loss - history[-1].loss
        if gain <= 0:
            raise SettingError(
                f"The loss fell by {gain:.4g}: there is no gain to compare at. Fine-tune with another lr, more steps or "
                "other features first."
            )
        if not lrs or (n_random and not random_lrs):
            raise SettingError(f"lrs={list(lrs)} and random_lrs={list(random_lrs)}. Give at least one of each.")
        row = ComparisonRow.of("features", self.directions.n_features, self.budget.lr, history, gain)
        rows = [row._replace(off_target=history[-1].off_target)]
        histories = {"features": tuple(history)}
        for name, build, rates in self._rivals(rank, lrs, n_random, random_lrs):
            row, histories[name] = self._best(name, build, rates, gain)
            rows.append(row)
        return LoraComparison(gain, unit, tuple(rows), histories)

    def _rivals(
        self, rank: int, lrs: Sequence[float], n_random: int, random_lrs: Sequence[float]
    ) -> list[tuple[str, Callable[[], Trainable], Sequence[float]]]:
        """Name, builder and learning rates of each rival."""
        engine, seed = self.engine, self.budget.seed
        lora, source = (peft_lora, "peft") if peft_fits(engine) else (lora_without_peft, "own factors")
        rivals: list = [(f"LoRA rank {rank} ({source})", lambda: lora(engine, rank, seed), lrs)]
        for number in range(n_random):
            directions = random_like(self.directions, torch.Generator().manual_seed(seed * 1000 + number))
            build = partial(coefficients_of, engine, directions)
            rivals.append((f"random directions {number}", build, random_lrs))
        return rivals

    def _best(
        self, name: str, build: Callable[[], Trainable], lrs: Sequence[float], gain: float
    ) -> tuple[ComparisonRow, tuple[TrainingReading, ...]]:
        """The training of the learning rate that costs least at the gain, or that gains most where none gets there."""
        tried = []
        for lr in lrs:
            trainable, budget = build(), replace(self.budget, lr=lr, n_readings=_N_READINGS)
            history = train(self.objective, trainable, budget, progress=self.progress, title=f"{name}, lr {lr:g}")
            tried.append((ComparisonRow.of(name, trainable.n_numbers, lr, history, gain), tuple(history)))
        reached = [pair for pair in tried if pair[0].off_target is not None]
        return min(reached, key=_cost) if reached else max(tried, key=lambda pair: pair[0].largest_gain)


def _cost(pair: tuple[ComparisonRow, tuple[TrainingReading, ...]]) -> float:
    cost = pair[0].off_target
    return float("inf") if cost is None else cost
