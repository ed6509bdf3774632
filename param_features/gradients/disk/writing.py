"""Gradients of many samples to disk, once, shard by shard; a harvest that was killed goes on where it was."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from param_features.errors import DiskFullError
from param_features.files import alone_in, is_full, size_text, write_whole
from param_features.gradients.disk.compression import Compression
from param_features.gradients.disk.manifest import (
    HELD_OUT,
    INPUTS,
    MANIFEST,
    TRAIN,
    Manifest,
    Planned,
    Whole,
    has_inputs,
    packed,
    row_bytes,
)
from param_features.gradients.disk.recipe import Recipe, refuse_differences
from param_features.gradients.disk.shards import ShardWriter, Stored, checksum, columns_of
from param_features.gradients.disk.sink import ShardSink
from param_features.gradients.disk.store import FactorStore
from param_features.gradients.harvester import Harvester
from param_features.gradients.plan import build_engine
from param_features.gradients.probe import SampleProbe
from param_features.gradients.references import own_references, question_of
from param_features.gradients.sampling import HarvestSettings, SamplePlan, plan_samples
from param_features.gradients.store import refuse_zero
from param_features.machine import Processes, launched
from param_features.problem import ModelInputs, Problem, Reference, Stage, input_tensors, stage_generator


def harvested(
    problem: Problem,
    settings: HarvestSettings,
    recipe: Recipe,
    folder: Path,
    *,
    say: Callable[[str], None],
    progress: bool,
    compression: Compression,
) -> FactorStore:
    """Gradients of what was read and checked, by a recipe that says so, begun or gone on with; errors as of `pf.harvest`."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = launched()
    with ExitStack() as lock:
        processes.from_main(lambda: lock.enter_context(alone_in(folder, "harvest")))
        before, is_done = processes.from_main(lambda: _begun_before(folder, recipe, say))
        if not is_done:
            _Harvest(problem, settings, recipe, folder, say, progress, processes, compression).run(before)
    return FactorStore.open(folder, is_checked=False)


def _begun_before(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> tuple[Manifest | None, bool]:
    """The manifest of what was harvested here before, None before the first harvest; and whether nothing is missing."""
    before = _manifest_before(folder, recipe, say)
    return before, before is not None and not before.missing and has_inputs(folder, before)


def _manifest_before(folder: Path, recipe: Recipe, say: Callable[[str], None]) -> Manifest | None:
    """The manifest of a harvest that was begun here, without the shards that are damaged; None before the first."""
    if not (folder / MANIFEST).exists():
        return None
    manifest = Manifest.read(folder)
    then = "Give the same arguments to go on with it, or another directory."
    refuse_differences(manifest.recipe, recipe, where=str(folder), then=then)
    damaged = manifest.damaged(folder)
    for name, why in damaged.items():
        say(f"{folder / name} {why}: it is made again.")
    if damaged or manifest.missing:
        n_intact = len(manifest.whole) - len(damaged)
        say(f"{folder}: {n_intact} of {len(manifest.planned)} shards are whole; going on with the rest.")
    return manifest.without(list(damaged))


@dataclass(frozen=True)
class _Harvest:
    """One run over the shards that are missing, in rounds of one shard for each process."""

    problem: Problem
    settings: HarvestSettings
    recipe: Recipe
    folder: Path
    say: Callable[[str], None]
    progress: bool
    processes: Processes
    compression: Compression

    def run(self, before: Manifest | None) -> None:
        """Write them, and the manifest after each."""
        manifest = before
        try:
            manifest = self.processes.from_main(lambda: self._started(before))
            n_samples = sum(shard.n_samples for shard in manifest.planned)
            with tqdm(total=n_samples, desc="harvest", unit="sample", disable=not self.progress) as bar:
                bar.update(n_samples - sum(shard.n_samples for shard in manifest.missing))
                for split in (TRAIN, HELD_OUT):
                    if split == HELD_OUT:
                        _check_reached(manifest)
                    for places in self._rounds(split, manifest):
                        manifest = self._with(places, manifest)
                        bar.update(sum(manifest.planned[place].n_samples for place in places))
        except OSError as error:
            if is_full(error):
                self._refuse_full(error, manifest)
            raise

    def _started(self, before: Manifest | None) -> Manifest:
        """The manifest that the run goes on from, on the disk."""
        manifest = self._begun() if before is None else replace(before, inputs_sha256=self._write_inputs())
        self._check_room(manifest)
        manifest.write(self.folder)
        return manifest

    def _rounds(self, split: str, manifest: Manifest) -> list[list[int]]:
        """The places of a split's missing shards, as many together as there are processes."""
        planned = enumerate(manifest.planned)
        missing = [n for n, shard in planned if shard.split == split and shard.name not in manifest.whole]
        return [missing[start : start + self.processes.n] for start in range(0, len(missing), self.processes.n)]

    def _with(self, places: list[int], manifest: Manifest) -> Manifest:
        """The manifest with the shards of a round, each harvested by one process."""

        def harvest_own() -> tuple[Whole, Tensor] | None:
            return None if self.processes.index >= len(places) else self._shard(places[self.processes.index], manifest)

        for place, (whole, state) in zip(places, self.processes.all_of(harvest_own), strict=False):
            manifest = manifest.with_shard(place, whole, state)
        self.processes.from_main(lambda: manifest.write(self.folder))
        return manifest

    def _shard(self, place: int, manifest: Manifest) -> tuple[Whole, Tensor]:
        """Harvest the shard at a place to its file; also the generator's state after it.

        The generator stands before it as the manifest knows, or is brought there by the draws of the shards in between.
        """
        n_known = min(place, len(manifest.states) - 1)
        generator = torch.Generator()
        generator.set_state(manifest.state(n_known))
        for earlier in manifest.planned[n_known:place]:
            self._go_over(earlier, manifest.n_slots, generator, None)
        shard = manifest.planned[place]
        is_compressed = shard.split == TRAIN and not self.compression.is_none
        columns = columns_of(manifest.kinds(shard.split))
        with ShardWriter(self.folder / shard.name, columns, shard.n_samples) as writer:
            sink = ShardSink(writer, self._split(shard.split)[0], self.compression if is_compressed else None)
            self._go_over(shard, manifest.n_slots, generator, sink)
            return sink.finish(), generator.get_state()

    def _go_over(self, shard: Planned, n_slots: int, generator: torch.Generator, sink: ShardSink | None) -> None:
        """Draw a shard's samples, and hand their gradients to the sink where there is one."""
        data_rows, inputs = self._split(shard.split)
        shard_rows = range(shard.first_row, shard.first_row + shard.n_rows)
        batches = [rows for rows in self.harvester.batches(inputs, n_slots) if int(rows[0]) in shard_rows]
        references = own_references(self.problem, self.harvester.engine, data_rows)
        self.harvester.run(inputs, batches, n_slots, generator, sink, references)

    @cached_property
    def harvester(self) -> Harvester:
        """Takes the gradients."""
        engine = build_engine(self.problem, self.say)
        question = question_of(self.problem, engine, 1, stage_generator(self.recipe["seed"], Stage.REFERENCES))
        return Harvester(SampleProbe(engine, self.problem.data), question.divergence, question.drawn, self.settings)

    @cached_property
    def plan(self) -> SamplePlan:
        """Which samples are taken."""
        settings = replace(self.settings, n_samples=self.settings.n_samples or self.settings.max_samples)
        return plan_samples(self.problem, settings, 1, stage_generator(self.recipe["seed"], Stage.PLAN))

    def _begun(self) -> Manifest:
        """The manifest of an empty store, whose data are on the disk."""
        like = self.harvester.probe.like
        stored = {name: Stored.like(gradient) for name, gradient in like.items()}
        kinds = {TRAIN: self.compression.stored(like), HELD_OUT: stored}
        planned = [shard for split, kind in kinds.items() for shard in self._planned(split, row_bytes(kind))]
        state = stage_generator(self.recipe["seed"], Stage.HARVEST).get_state()
        return Manifest(
            recipe=self.recipe,
            model=self.problem.adapter.description,
            n_slots=self.plan.n_slots,
            stored=stored,
            compressed=kinds[TRAIN],
            planned=tuple(planned),
            whole={},
            states=(packed(state),),
            inputs_sha256=self._write_inputs(),
        )

    def _write_inputs(self) -> str:
        """Put the data in their file and return its checksum."""
        write_whole(self.folder / INPUTS, save(_tensors(self.problem, self.plan, self.harvester.reference)))
        return checksum(self.folder / INPUTS)

    def _split(self, split: str) -> tuple[Tensor, ModelInputs]:
        """Which rows of the data a split is of, and these rows."""
        rows = self.plan.train if split == TRAIN else self.plan.held_out
        return rows, self.problem.data.rows(rows)

    def _planned(self, split: str, n_bytes: int) -> Iterator[Planned]:
        """A split's shards: whole batches that follow each other, as many as a shard's size takes."""
        batches = self.harvester.batches(self._split(split)[1], self.plan.n_slots)
        most, first, n_rows, n_shards = self.recipe["shard_mib"] * 2**20, 0, 0, 0
        for place, batch in enumerate(batches):
            n_rows += len(batch)
            is_last = place == len(batches) - 1
            if is_last or (n_rows + len(batches[place + 1])) * self.plan.n_slots * n_bytes > most:
                name = f"{split}-{n_shards:05}.safetensors"
                yield Planned(name, split, first, n_rows, n_rows * self.plan.n_slots)
                first, n_rows, n_shards = first + n_rows, 0, n_shards + 1

    def _check_room(self, manifest: Manifest) -> None:
        """Refuse a harvest that the disk cannot hold, as the disk would halfway."""
        if shutil.disk_usage(self.folder).free < _bytes_left(manifest):
            self._refuse_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), manifest)

    def _refuse_full(self, error: OSError, manifest: Manifest | None) -> None:
        """Say what is needed where the disk is full.

        Raises:
            DiskFullError: Always; gives the bytes that are needed and those that are free.
        """
        needed = "The data alone do not fit" if manifest is None else f"{size_text(_bytes_left(manifest))} are still needed"
        n_whole, free = 0 if manifest is None else len(manifest.whole), shutil.disk_usage(self.folder).free
        raise DiskFullError(
            f"{self.folder}: {error.strerror}. {needed}, {size_text(free)} are free. The {n_whole} whole shards "
            "stay: make room and call again with the same arguments, or take fewer samples (n_samples=) into another "
            "directory."
        ) from error


def _bytes_left(manifest: Manifest) -> int:
    return sum(shard.n_samples * manifest.row_bytes(shard.split) for shard in manifest.missing)


def _check_reached(manifest: Manifest) -> None:
    """Refuse a parameter that no training sample's output depends on."""
    reached = {name for shard in manifest.whole.values() for name in shard.reached}
    for name in manifest.stored:
        if name not in reached:
            refuse_zero(name)


def _tensors(problem: Problem, plan: SamplePlan, drawn: Reference) -> dict[str, Tensor]:
    """What a decomposition needs beside the gradients: the data, which rows were taken, and fixed references."""
    tensors = {"plan/train": plan.train, "plan/held_out": plan.held_out}
    tensors |= {} if drawn.pool is None else {"reference": drawn.pool}
    sides = {"data": problem.data} | ({} if problem.pairs is None else {"partners": problem.pairs.corrupted})
    for title, inputs in sides.items():
        tensors |= input_tensors(inputs, title) if inputs.is_all_tensors else {}
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
