"""What a fine-tuning is judged by: the loss on its own data, and how far the output moves on other data."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.errors import InputError
from param_features.gradients import GradientEngine, at_least_float32
from param_features.intervene.task import ModelRun, Task, chunks
from param_features.params import held_still
from param_features.problem import KL, Divergence, ModelInputs


@dataclass(frozen=True)
class OffTargetData:
    """Data on which the output should stay as it is.

    Attributes:
        inputs: Every row.
        divergence: How far the moved output lies from the original; KL(original ‖ moved) for logits.
        per_position: Whether a sample is a position; padding does not count.
        before: The original model's outputs, taken once.
    """

    inputs: ModelInputs
    divergence: Divergence
    per_position: bool
    before: Float[Tensor, "row ..."]

    def value(self, run: ModelRun, index: Int[Tensor, " row"]) -> tuple[Tensor, int]:
        """Mean divergence over the samples of some rows, and how many they are."""
        batch = self.inputs.rows(index)
        before = self._samples(self.before[index.to(self.before.device)], batch)
        values = self.divergence.value(self._samples(run(batch), batch), self.divergence.to_reference(before))
        return values.mean(), len(values)

    def mean(self, run: ModelRun, batch_size: int) -> float:
        """The mean over the samples of all rows."""
        parts = [self.value(run, index) for index in chunks(len(self.inputs), batch_size)]
        return sum(float(value) * weight for value, weight in parts) / sum(weight for _, weight in parts)

    def rows(self, index: Int[Tensor, " row"]) -> "OffTargetData":
        """The same data without the other rows."""
        return replace(self, inputs=self.inputs.rows(index), before=self.before[index.to(self.before.device)])

    def _samples(self, output: Tensor, batch: ModelInputs) -> Float[Tensor, "sample d_output"]:
        output = at_least_float32(output)
        if not self.per_position:
            return output.flatten(1)
        return output.flatten(0, 1) if batch.sample_mask is None else output[batch.sample_mask]


@dataclass(frozen=True)
class Objective:
    """Loss + kl_weight · divergence on the penalty's rows; the off-target divergence is measured on rows of its own.

    Attributes:
        task: The data to be learned.
        penalty: Rows that the penalty draws from; None without one.
        off_target: Rows that the off-target divergence is measured on, none of them the penalty's.
        kl_weight: Of the penalty.
    """

    task: Task
    penalty: OffTargetData | None
    off_target: OffTargetData
    kl_weight: float

    def value(self, run: ModelRun, batch_size: int, generator: torch.Generator) -> Tensor:
        """The objective on rows drawn with `generator`; all of them where there are no more than `batch_size`."""
        value, _ = self.task.value(run, draw_rows(len(self.task.inputs), batch_size, generator))
        if self.penalty is None:
            return value
        index = draw_rows(len(self.penalty.inputs), batch_size, generator)
        return value + self.kl_weight * self.penalty.value(run, index)[0]


def draw_rows(n_rows: int, batch_size: int, generator: torch.Generator) -> Int[Tensor, " row"]:
    """Draw rows without repeats; all, in order, where there are no more than `batch_size`."""
    if n_rows <= batch_size:
        return torch.arange(n_rows)
    return torch.randperm(n_rows, generator=generator)[:batch_size]


def read_off_target(engine: GradientEngine, inputs: ModelInputs, divergence: Divergence, batch_size: int) -> OffTargetData:
    """The rows on which the output should stay: KL for logits over tokens, else the fit's own divergence.

    Cost: a forward pass. Memory: the rows' outputs.
    """
    adapter = engine.adapter
    with held_still(adapter.module), torch.no_grad():
        batches = [inputs.rows(index) for index in chunks(len(inputs), batch_size)]
        before = torch.cat([adapter.run(*batch.args, **batch.kwargs) for batch in batches])
    is_of_tokens = engine.per_position and adapter.d_vocab in (None, before.shape[-1])
    return OffTargetData(inputs, KL() if is_of_tokens else divergence, engine.per_position, before)


def with_penalty(task: Task, off_target: OffTargetData, kl_weight: float, generator: torch.Generator) -> Objective:
    """The objective; with a penalty, half of the other rows are for it and the rest for measuring.

    Raises:
        InputError: There is one row only.
    """
    if not kl_weight:
        return Objective(task, None, off_target, 0.0)
    n_rows = len(off_target.inputs)
    if n_rows < 2:
        raise InputError(
            "kl_data has 1 row. A penalty needs at least 2: half of them are for it, the others for measuring the "
            "off-target divergence. Give more, or kl_weight=0."
        )
    order = torch.randperm(n_rows, generator=generator)
    return Objective(task, off_target.rows(order[: n_rows // 2]), off_target.rows(order[n_rows // 2 :]), kl_weight)
