"""Harvesting: many samples' gradients from a data set, batch by batch."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from param_features.gradients.cotangents import AgainstDrawn, AgainstRows
from param_features.gradients.engine import GradientEngine
from param_features.gradients.probe import SampleProbe
from param_features.gradients.sampling import HarvestSettings, draw_positions, least_rows
from param_features.gradients.store import GradientStore, bytes_per_sample, check_memory
from param_features.gradients.types import Gradients
from param_features.machine import ALONE, Processes, Share, free_bytes
from param_features.problem import Divergence, ModelInputs, Reference

_MOST_OUTPUTS = 2**27

OwnReferences = Callable[[Int[Tensor, " row"]], Float[Tensor, "row d_output"]]
"""Which rows -> the reference of each."""


@runtime_checkable
class Sink(Protocol):
    """Takes the gradients of a harvest, batch by batch in their order."""

    def begin(self, rows: Int[Tensor, " row"]) -> bool:
        """Make ready for a batch; False where its gradients are not wanted here, so that its samples are only drawn."""
        ...

    def add(self, rows: Int[Tensor, " row"], positions: Int[Tensor, " row"], gradients: Gradients) -> None:
        """Take the gradients of one slot of the batch: a sample of each of its rows, at that position."""
        ...


@dataclass(frozen=True)
class _MemorySink:
    """Puts the gradients of some batches in their places of a store in memory.

    Attributes:
        store: Has room for the samples of all batches.
        n_slots: Samples per row.
        first_rows: Of the batches that are taken here.
        bar: Shows how many samples are done.
    """

    store: GradientStore
    n_slots: int
    first_rows: frozenset[int]
    bar: tqdm

    def begin(self, rows: Int[Tensor, " row"]) -> bool:
        """Go to the batch's place, where it is one of those taken here."""
        first = int(rows[0])
        if first not in self.first_rows:
            return False
        self.store.go_to(first * self.n_slots)
        return True

    def add(self, rows: Int[Tensor, " row"], positions: Int[Tensor, " row"], gradients: Gradients) -> None:
        """Put one sample of each row after those before."""
        self.store.add(gradients)
        self.bar.update(len(rows))


@dataclass(frozen=True)
class Harvester:
    """Takes gradients of a data set's samples for one divergence and reference.

    Attributes:
        probe: Of the engine on that data set: what a sample takes is known from it.
        divergence: What gradients are of.
        reference: What outputs are compared with, where references do not belong to rows.
        settings: How many samples are taken and how.
    """

    probe: SampleProbe
    divergence: Divergence
    reference: Reference
    settings: HarvestSettings

    @property
    def engine(self) -> GradientEngine:
        """Takes the gradients."""
        return self.probe.engine

    def store(
        self,
        inputs: ModelInputs,
        n_slots: int,
        generator: torch.Generator,
        *,
        progress: bool,
        title: str,
        references: OwnReferences | None = None,
        processes: Processes = ALONE,
    ) -> GradientStore:
        """Gradients of `n_slots` positions of every row.

        Args:
            inputs: The rows to use.
            n_slots: Positions per row, drawn without replacement; 1 with references of kind `"pairs"`, the last real one.
            generator: Draws positions and references.
            progress: Whether to show a progress bar.
            title: Its label.
            references: Gives each row's own reference, where references belong to rows; they are drawn otherwise.
            processes: Who share the batches; each has the whole store in the end. The bar shows this one's part.

        Raises:
            MemoryEstimateError: The gradients would not fit; said before the run.
        """
        batches = self.batches(inputs, n_slots)
        store = self._reserve(len(inputs) * n_slots)
        share = Share(processes, len(batches))
        own_batches = batches[share.items]
        n_own = sum(map(len, own_batches)) * n_slots
        with tqdm(total=n_own, desc=title, unit="sample", disable=not progress) as bar:
            sink = _MemorySink(store, n_slots, frozenset(int(rows[0]) for rows in own_batches), bar)
            self.run(inputs, batches, n_slots, generator, sink, references)
        starts = [int(rows[0]) * n_slots for rows in batches] + [store.n_samples]
        store.spread_out(share, starts)
        return store

    def run(
        self,
        inputs: ModelInputs,
        batches: Iterable[Int[Tensor, " row"]],
        n_slots: int,
        generator: torch.Generator,
        sink: Sink | None,
        references: OwnReferences | None = None,
    ) -> None:
        """Draw the samples of batches in their order, and hand the gradients of those that a sink takes to it.

        The generator ends in the same state whatever is taken, so that processes which share batches draw the same samples.

        Args:
            inputs: The rows to use.
            batches: Some of them each.
            n_slots: Positions per row.
            generator: Draws positions and references.
            sink: Takes the gradients; without one samples are only drawn.
            references: Gives each row's own reference, where references belong to rows.
        """
        for rows in batches:
            if sink is not None and sink.begin(rows):
                self.each_slot(inputs, rows, n_slots, generator, sink.add, references)
            else:
                self.skip(inputs, rows, n_slots, generator, references)

    def each_slot(
        self,
        inputs: ModelInputs,
        rows: Int[Tensor, " row"],
        n_slots: int,
        generator: torch.Generator,
        consume: Callable[[Tensor, Tensor, Gradients], None],
        references: OwnReferences | None = None,
    ) -> None:
        """Gradients of `n_slots` positions of some rows, one batch; `consume` takes rows, positions and gradients of a slot.

        The other arguments are those of `store`.
        """
        batch = inputs.rows(rows)
        drawn = AgainstDrawn(self.divergence, self.reference, generator)
        cotangent_of = drawn if references is None else AgainstRows(self.divergence, references(rows))
        positions = self._positions(batch, n_slots, generator)
        self.engine.each_slot(
            batch, positions, cotangent_of, lambda slot, gradients: consume(rows, positions[:, slot], gradients)
        )

    def skip(
        self,
        inputs: ModelInputs,
        rows: Int[Tensor, " row"],
        n_slots: int,
        generator: torch.Generator,
        references: OwnReferences | None = None,
    ) -> None:
        """Draw what `each_slot` would and take no gradients, which another process does.

        How many numbers are drawn depends on an output's width alone, so that the generator ends where it would have.
        """
        self._positions(inputs.rows(rows), n_slots, generator)
        if references is None:
            d_output = self.probe.d_output
            for slots in self.engine.slot_groups(len(rows), n_slots, self.engine.d_root(d_output)):
                self.reference.skip(len(rows) * len(slots), d_output, generator)

    def _positions(self, batch: ModelInputs, n_slots: int, generator: torch.Generator) -> Int[Tensor, "batch slot"]:
        if not self.engine.per_position:
            return _zeros(batch)
        if self.reference.kind == "pairs":
            return batch.last_positions.unsqueeze(1)
        return draw_positions(batch, n_slots, generator)

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes in memory."""
        return bytes_per_sample(self.probe.like, self.settings.kept_as)

    @property
    def settings_that_fit(self) -> HarvestSettings:
        """The settings with `n_samples` set, where it was left open, to what fits in memory."""
        if self.settings.n_samples is not None:
            return self.settings
        n_fitting = self.budget // self.sample_bytes
        return replace(self.settings, n_samples=max(1, min(self.settings.max_samples, n_fitting)))

    def _reserve(self, n_samples: int) -> GradientStore:
        check_memory(n_samples, self.sample_bytes, self.budget)
        return GradientStore(n_samples, self.probe.like, self.settings.kept_as)

    @property
    def budget(self) -> int:
        """Bytes that stored gradients may take."""
        limit = self.settings.max_memory_gib
        return self._half_of_free if limit is None else int(limit * 2**30)

    @property
    def _half_of_free(self) -> int:
        """Half of the bytes that are free in the memory where the gradients lie."""
        return free_bytes(self.engine.device) // 2

    def agreed(self, processes: Processes) -> "Harvester":
        """The harvester with a bound on memory that all processes of the harvest can keep, where none was given."""
        if processes.n == 1 or self.settings.max_memory_gib is not None:
            return self
        n_bytes = processes.least(self._half_of_free // processes.n_on_machine)
        return replace(self, settings=replace(self.settings, max_memory_gib=n_bytes / 2**30))

    def batches(self, inputs: ModelInputs, n_slots: int) -> tuple[Tensor, ...]:
        """Rows in near-equal batches, none of a single sample, which could draw no other as its reference."""
        n_pos = inputs.n_pos if self.engine.per_position else 1
        size = self.settings.batch_size or max(1, min(1024, min(4096, self._most_positions) // n_pos))
        n_batches = max(1, len(inputs) // max(size, least_rows(n_slots)))
        return torch.arange(len(inputs)).tensor_split(n_batches)

    @property
    def _most_positions(self) -> int:
        """Positions whose outputs take 512 MiB, where those of all positions exist together: shapes alone decide."""
        d_output = 0 if self.engine.routes.through_head else self.engine.adapter.d_vocab or 0
        return _MOST_OUTPUTS // max(1, d_output)


def _zeros(inputs: ModelInputs) -> Int[Tensor, "batch one"]:
    return torch.zeros(len(inputs), 1, dtype=torch.long)
