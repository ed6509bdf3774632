"""Which samples are harvested: how many, of which sequences, at which positions."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from param_features.errors import SampleCountError, SettingError
from param_features.machine import public
from param_features.problem import ModelInputs, Problem

_HELD_OUT_PAIRS = 10
"""Of few pairs a quarter is held out at least, up to so many: a tenth of 40 would be four."""


@public
@dataclass(frozen=True)
class HarvestSettings:
    """How many samples are taken and how.

    Attributes:
        n_samples: Samples in all, training and held out; the default is as many as fit in memory, up to `max_samples`.
        max_samples: Bound on the default.
        held_out_fraction: Share of the sequences kept for measuring, in (0, 1).
        batch_size: Sequences (inputs) per forward pass; the default holds about 4,096 positions, fewer where outputs over a
            large vocabulary are kept for all of them.
        max_memory_gib: Bound on the gradients kept, in GiB; the default is half of what is free.
        memory_dtype: Of training gradients kept in memory: `"float32"` (as they come) or `"bfloat16"`, half as large and
            rounded to 0.4 %. They are read, and summed, as float32.
        n_references: Outputs drawn from the data, over which activations average later.
        n_examples: Held-out sequences (inputs) kept for `top_examples` and saved with the features.
    """

    n_samples: int | None = None
    max_samples: int = 65_536
    held_out_fraction: float = 0.1
    batch_size: int | None = None
    max_memory_gib: float | None = None
    memory_dtype: str = "float32"
    n_references: int = 16
    n_examples: int = 256

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not 0 < self.held_out_fraction < 1:
            raise SettingError(f"held_out_fraction={self.held_out_fraction} must lie between 0 and 1, such as 0.1.")
        for name in ("n_samples", "batch_size", "max_memory_gib", "max_samples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(f"{name}={value} must be positive.")
        for name in ("n_references", "n_examples"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.memory_dtype not in _MEMORY_DTYPES:
            accepted = ", ".join(map(repr, _MEMORY_DTYPES))
            raise SettingError(
                f"memory_dtype={self.memory_dtype!r} is unknown. Accepted: {accepted}; the second needs half the memory."
            )

    @property
    def kept_as(self) -> torch.dtype | None:
        """The dtype that gradients are rounded to in memory; None where they are kept as they come."""
        return _MEMORY_DTYPES[self.memory_dtype]


_MEMORY_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SamplePlan:
    """Which samples are taken: sequences, and positions in each.

    Attributes:
        train: Rows of the data for fitting.
        held_out: Rows for measuring.
        n_slots: Positions per sequence; 1 when a sample is an input.
    """

    train: Int[Tensor, " n_train"]
    held_out: Int[Tensor, " n_held_out"]
    n_slots: int


def plan_samples(problem: Problem, settings: HarvestSettings, n_features: int, generator: torch.Generator) -> SamplePlan:
    """Split the sequences at random and choose how many positions each gives.

    Raises:
        SampleCountError: The data hold fewer training samples than features, or too few sequences to hold some out.
    """
    inputs, is_paired = problem.data, problem.pairs is not None
    per_position, n_held_out = problem.output.per_position and not is_paired, _HELD_OUT_PAIRS if is_paired else 0
    n_rows = len(inputs)
    n_pos = _n_positions(inputs) if per_position else 1
    n_wanted = min(settings.n_samples or settings.max_samples, n_rows * n_pos)
    n_slots = min(n_pos, -(-n_wanted // n_rows))
    n_used = min(n_rows, -(-n_wanted // n_slots))
    n_held_out = max(least_rows(n_slots), round(n_used * settings.held_out_fraction), min(n_held_out, n_used // 4))
    order = torch.randperm(n_rows, generator=generator)[:n_used]
    n_train = (n_used - n_held_out) * n_slots
    if n_train < max(n_features, 2):
        raise SampleCountError(
            f"{n_rows} sequences with up to {n_pos} positions give {n_train} training samples (after {n_held_out} held-out "
            f"sequences), fewer than the {n_features} features asked for. Give more data, or fewer features; ten samples "
            "a feature is the least that can mean anything."
        )
    return SamplePlan(order[n_held_out:].sort().values, order[:n_held_out].sort().values, n_slots)


def plan_rows(problem: Problem, settings: HarvestSettings, generator: torch.Generator) -> SamplePlan:
    """Split the sequences at random, each of which gives all of its positions; all sequences unless `n_samples` is given.

    Raises:
        SampleCountError: There are too few sequences to hold some out.
    """
    inputs = problem.data
    n_slots = _n_positions(inputs) if problem.output.per_position else 1
    n_used = len(inputs) if settings.n_samples is None else min(len(inputs), -(-settings.n_samples // n_slots))
    n_held_out = max(least_rows(n_slots), round(n_used * settings.held_out_fraction))
    if n_used - n_held_out < least_rows(n_slots):
        raise SampleCountError(
            f"{n_used} sequences with up to {n_slots} positions are too few to learn from some and measure on {n_held_out} "
            "others. Give more data, or a larger n_samples."
        )
    order = torch.randperm(len(inputs), generator=generator)[:n_used]
    return SamplePlan(order[n_held_out:].sort().values, order[:n_held_out].sort().values, n_slots)


def _n_positions(inputs: ModelInputs) -> int:
    """Positions that every row has; a padded batch counts its mean length."""
    return inputs.n_pos if inputs.sample_mask is None else max(1, int(inputs.sample_mask.sum()) // len(inputs))


def least_rows(n_slots: int) -> int:
    """Rows that make two samples: one to be compared with the other."""
    return 1 if n_slots > 1 else 2


def draw_positions(inputs: ModelInputs, n_slots: int, generator: torch.Generator) -> Int[Tensor, "batch slot"]:
    """Real positions of each row, at random without replacement; a row shorter than `n_slots` repeats its own."""
    weights = torch.ones(len(inputs), inputs.n_pos) if inputs.sample_mask is None else inputs.sample_mask.cpu().float()
    order = torch.rand(weights.shape, dtype=torch.float32, generator=generator).add(weights * 2).argsort(1, descending=True)
    length = weights.sum(1).long().clamp(min=1)
    slot = torch.arange(n_slots).unsqueeze(0) % length.unsqueeze(1)
    return order.gather(1, slot)
