"""What a fit of components holds in memory, as a line through steps of few rows, and refusing what does not fit."""

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from param_features.errors import MemoryEstimateError
from param_features.fit.components import ComponentSettings, ComponentTrainer
from param_features.machine import free_bytes
from param_features.run.estimation.live import LiveBytes
from param_features.run.from_weights import ComponentRun

_FEW, _MORE = 2, 4
"""Rows of the steps whose memory is measured."""

_MIB = 2**20


@dataclass(frozen=True)
class ComponentSizes:
    """How large a fit of components is.

    Attributes:
        n_train: Samples for fitting.
        n_held_out: Samples for measuring.
        fit: Settings of the fit.
        n_rows: Rows of a step.
        n_pos: Positions of a row.
        fixed_bytes: What a step takes whatever the rows: components, importances, their optimiser.
        row_bytes: What a step takes for each row.
        disk_bytes: Of the two checkpoints that are kept, where they are.
    """

    n_train: int
    n_held_out: int
    fit: ComponentSettings
    n_rows: int
    n_pos: int
    fixed_bytes: float
    row_bytes: float
    disk_bytes: int
    settings_name = "ComponentSettings"
    disk_meaning = "of two checkpoints, where they are kept"

    @property
    def n_samples(self) -> int:
        """Training samples and those held out together."""
        return self.n_train + self.n_held_out

    @property
    def stages(self) -> dict[str, int]:
        """Bytes at the peak of a step. Measuring takes fewer rows, and no optimiser."""
        return {"fit": round(self.fixed_bytes + self.n_rows * self.row_bytes)}

    @property
    def peak_bytes(self) -> int:
        """Bytes at the peak of the largest stage."""
        return max(self.stages.values())

    @property
    def largest(self) -> str:
        """The stage that takes the most memory."""
        return "fit"

    def within(self, n_bytes: int) -> dict[str, int]:
        """The largest `batch_size` with which a step takes so many bytes; nothing where it fits, or none would."""
        n_rows = int((n_bytes - self.fixed_bytes) / max(1.0, self.row_bytes))
        return {} if self.peak_bytes <= n_bytes or n_rows < _FEW else {"batch_size": n_rows * self.n_pos}


@dataclass(frozen=True)
class StepProbe:
    """A fit whose steps are tried on few rows; it starts at random, whatever the settings say."""

    run: ComponentRun

    @cached_property
    def trainer(self) -> ComponentTrainer:
        """The fit. Cost: as its start."""
        settings = replace(self.run.fit, start="random")
        generator, plan = torch.Generator().manual_seed(0), self.run.plan
        data, counts = self.run.problem.data.rows(plan.train), self.run.request.counts
        return ComponentTrainer(self.run.engine, self.run.problem.divergence, data, counts, settings, generator)

    @cached_property
    def full_rows(self) -> int:
        """Rows of a step of the run."""
        return self.trainer.n_rows

    def step(self, n_rows: int) -> None:
        """One step on so many rows."""
        trainer = self.trainer
        if trainer.n_rows != n_rows:
            trainer.take_rows(n_rows)
        trainer.order, trainer.n_steps = torch.empty(0, dtype=torch.long), 0
        with trainer.model.held():
            trainer.step()

    @cached_property
    def sizes(self) -> ComponentSizes:
        """From steps of two and of four rows."""
        full, plan = self.full_rows, self.run.plan
        trained = self.trainer.optimizer.param_groups[0]["params"]
        weights = sum(tensor.numel() * tensor.element_size() for tensor in trained)
        self.step(min(_FEW, full))  # makes what the optimiser keeps
        few = self._peak(min(_FEW, full))
        more = self._peak(min(_MORE, full))
        row = max(0.0, (more - few) / (_MORE - _FEW)) if full >= _MORE else few / _FEW
        adversary = self.trainer.adversary
        sources = 0 if adversary is None else sum(t.numel() * t.element_size() for t in adversary.counters.values())
        return ComponentSizes(
            n_train=len(plan.train) * plan.n_slots,
            n_held_out=len(plan.held_out) * plan.n_slots,
            fit=self.run.fit,
            n_rows=full,
            n_pos=self.run.problem.data.n_pos,
            fixed_bytes=3 * weights + few - _FEW * row,
            row_bytes=row,
            disk_bytes=round(2 * (3 * weights + sources * full / self.trainer.n_rows)),
        )

    def _peak(self, n_rows: int) -> int:
        """Bytes that a step makes at its peak, the adversary's sources among them; the optimiser's are there before."""
        with LiveBytes() as live:
            self.trainer.take_rows(n_rows)
            self.step(n_rows)
            self.step(n_rows)
        return live.peak


def check_room(run: ComponentRun) -> None:
    """Refuse a fit of components whose steps do not fit in memory. Cost: four steps of two and of four rows.

    Raises:
        MemoryEstimateError: Says what a step needs, what is free, and the batch that would fit.
    """
    sizes, processes = StepProbe(run).sizes, run.processes
    free = processes.least(free_bytes(run.problem.subset.device) // processes.n_on_machine)
    if sizes.peak_bytes <= free:
        return
    fitting = sizes.within(free)
    advice = f"fit=pf.ComponentSettings(batch_size={fitting['batch_size']:_})" if fitting else "fewer components or matrices"
    raise MemoryEstimateError(
        f"A step of {run.request.n_features:,} components on {sizes.n_rows} rows of {sizes.n_pos} positions needs about "
        f"{sizes.peak_bytes / _MIB:,.0f} MiB of memory; {free / _MIB:,.0f} MiB are free. Take {advice}. pf.estimate says "
        "what other settings need."
    )
