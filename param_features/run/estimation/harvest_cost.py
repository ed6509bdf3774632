"""What harvesting takes: a few rows of the real data, at growing batches."""

from dataclasses import dataclass
from functools import cached_property

import torch

from param_features.gradients import Gradients, GradientStore, Harvester, SamplePlan, own_references
from param_features.problem import ModelInputs, Problem
from param_features.run.estimation.ladder import Ladder
from param_features.run.estimation.live import LiveBytes

_LEAST_ROWS = 2


@dataclass(frozen=True)
class HarvestProbe:
    """Takes the gradients of a few rows as the run would."""

    problem: Problem
    harvester: Harvester
    plan: SamplePlan

    @cached_property
    def like(self) -> Gradients:
        """Gradients of two rows, as they are stored."""
        return self.harvester.probe.like

    def seconds(self, ladder: Ladder) -> float:
        """Seconds of the training and the held-out rows: every batch at the time of one."""
        n_rows, n_slots = self.plan.train, self.plan.n_slots
        batches = [len(b) for part in (n_rows, self.plan.held_out) for b in self._batches(len(part))]
        return (
            len(batches)
            * ladder.seconds(lambda n: self.taken(n, n_slots), max(batches), least=_LEAST_ROWS)
            * (sum(batches) / (len(batches) * max(batches)))
        )

    def taken(self, n_rows: int, n_slots: int) -> GradientStore:
        """The gradients of some rows, spread over the data."""
        store = GradientStore(n_rows * n_slots, self.like)
        rows = torch.linspace(0, len(self._data) - 1, n_rows).long()
        references = own_references(self.problem, self.harvester.engine, self.plan.train)
        self.harvester.each_slot(
            self._data, rows, n_slots, torch.Generator().manual_seed(0), lambda *slot: store.add(slot[2]), references
        )
        return store

    @cached_property
    def batch_bytes(self) -> int:
        """At the peak of a batch: so much a row for the forward pass, and so much a sample for its output.

        Outputs exist together for as many samples as `GradientEngine.each_slot` takes at a time.
        """
        n_rows = max(len(batch) for batch in self._batches(len(self.plan.train)))
        one, two = self._peak(2, 1), self._peak(4, 1)
        row = (two - one) / 2
        if self.plan.n_slots == 1:
            return round(one + row * (n_rows - 2))
        sample = max(0.0, self._peak(4, 2) - two) / 4
        d_root = self.harvester.engine.d_root(self.problem.output.d_output)
        together = max(map(len, self.harvester.engine.slot_groups(n_rows, self.plan.n_slots, d_root)))
        return round(one + row * (n_rows - 2) + sample * n_rows * (together - 1))

    def _peak(self, n_rows: int, n_slots: int) -> int:
        with LiveBytes() as live:
            self.taken(min(n_rows, len(self._data)), n_slots)
        return live.peak

    @cached_property
    def _data(self) -> ModelInputs:
        return self.problem.data.rows(self.plan.train)

    def _batches(self, n_rows: int) -> tuple[torch.Tensor, ...]:
        return self.harvester.batches(self.problem.data.rows(slice(0, n_rows)), self.plan.n_slots)
