"""Harvesting: many samples' gradients from a data set, split by sequence into training and held-out samples."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from param_features.errors import SampleCountError, SettingError
from param_features.gradients.cotangents import AgainstDrawn, AgainstRows
from param_features.gradients.engine import GradientEngine
from param_features.gradients.store import GradientStore, bytes_per_sample, check_memory, storable
from param_features.gradients.types import Gradients
from param_features.machine import ALONE, Processes, Share, free_bytes
from param_features.problem import Divergence, ModelInputs, Problem, Reference

_MOST_OUTPUTS = 2**27

_HELD_OUT_PAIRS = 10
"""Of few pairs a quarter is held out at least, up to so many: a tenth of 40 would be four."""

OwnReferences = Callable[[Int[Tensor, " row"]], Float[Tensor, "row d_output"]]
"""Which rows -> the reference of each."""


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
    """

    n_samples: int | None = None
    max_samples: int = 65_536
    held_out_fraction: float = 0.1
    batch_size: int | None = None
    max_memory_gib: float | None = None
    memory_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if not 0 < self.held_out_fraction < 1:
            raise SettingError(f"held_out_fraction={self.held_out_fraction} must lie between 0 and 1, such as 0.1.")
        for name in ("n_samples", "batch_size", "max_memory_gib", "max_samples"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingError(f"{name}={value} must be positive.")
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
    n_held_out = max(_least_rows(n_slots), round(n_used * settings.held_out_fraction), min(n_held_out, n_used // 4))
    order = torch.randperm(n_rows, generator=generator)[:n_used]
    n_train = (n_used - n_held_out) * n_slots
    if n_train < max(n_features, 2):
        raise SampleCountError(
            f"{n_rows} sequences with up to {n_pos} positions give {n_train} training samples (after {n_held_out} held-out "
            f"sequences), fewer than the {n_features} features asked for. Give more data, or fewer features; ten samples "
            "a feature is the least that can mean anything."
        )
    return SamplePlan(order[n_held_out:].sort().values, order[:n_held_out].sort().values, n_slots)


def _n_positions(inputs: ModelInputs) -> int:
    """Positions that every row has; a padded batch counts its mean length."""
    return inputs.n_pos if inputs.mask is None else max(1, int(inputs.mask.sum()) // len(inputs))


@dataclass(frozen=True)
class Harvester:
    """Takes gradients of a data set's samples for one divergence and reference."""

    engine: GradientEngine
    divergence: Divergence
    reference: Reference
    settings: HarvestSettings

    def store(
        self,
        inputs: ModelInputs,
        n_slots: int,
        generator: torch.Generator,
        *,
        progress: bool,
        title: str,
        own: OwnReferences | None = None,
        processes: Processes = ALONE,
    ) -> GradientStore:
        """Gradients of `n_slots` positions of every row.

        Args:
            inputs: The rows to use.
            n_slots: Positions per row, drawn without replacement; 1 with references of kind `"pairs"`, the last real one.
            generator: Draws positions and references.
            progress: Whether to show a progress bar.
            title: Its label.
            own: Gives each row's own reference, where references belong to rows; they are drawn otherwise.
            processes: Who share the batches; each has the whole store in the end. The bar shows this one's part.

        Raises:
            MemoryEstimateError: The gradients would not fit; said before the run.
        """
        batches = self.batches(inputs, n_slots)
        store = self._reserve(inputs, len(inputs) * n_slots)
        share = Share(processes, len(batches))
        mine, d_output = range(len(batches))[share.items], None if share.is_whole else self.width(inputs)
        n_own = sum(len(batches[place]) for place in mine) * n_slots
        with tqdm(total=n_own, desc=title, unit="sample", disable=not progress) as bar:

            def consume(rows: Tensor, _: Tensor, gradients: Gradients) -> None:
                store.add(gradients)
                bar.update(len(rows))

            for place, rows in enumerate(batches):
                if place in mine:
                    store.go_to(int(rows[0]) * n_slots)
                    self.each_slot(inputs, rows, n_slots, generator, consume, own)
                else:
                    assert d_output is not None
                    self.skip(inputs, rows, n_slots, generator, d_output, own)
        starts = [int(rows[0]) * n_slots for rows in batches] + [store.n_samples]
        store.spread_out(share, starts)
        return store

    def each_slot(
        self,
        inputs: ModelInputs,
        rows: Int[Tensor, " row"],
        n_slots: int,
        generator: torch.Generator,
        consume: Callable[[Tensor, Tensor, Gradients], None],
        own: OwnReferences | None = None,
    ) -> None:
        """Gradients of `n_slots` positions of some rows, one batch; `consume` takes rows, positions and gradients of a slot.

        The other arguments are those of `store`.
        """
        batch = inputs.rows(rows)
        drawn = AgainstDrawn(self.divergence, self.reference, generator)
        cotangent_of = drawn if own is None else AgainstRows(self.divergence, own(rows))
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
        d_output: int,
        own: OwnReferences | None = None,
    ) -> None:
        """Draw what `each_slot` would and take no gradients, which another process does.

        How many numbers are drawn depends on an output's width alone, so that the generator ends where it would have.
        """
        self._positions(inputs.rows(rows), n_slots, generator)
        if own is None:
            for slots in self.engine.slot_groups(len(rows), n_slots, self.engine.d_root(d_output)):
                self.reference.skip(len(rows) * len(slots), d_output, generator)

    def width(self, inputs: ModelInputs) -> int:
        """Numbers of one sample's output, from two rows."""
        found, rows = [], inputs.rows(slice(0, 2))

        def read(output: Tensor, *_: Tensor) -> Tensor:
            found.append(output.shape[1])
            return torch.zeros_like(output)

        self.engine.each_slot(rows, _zeros(rows), read, lambda *_: None)
        return found[0]

    def _positions(self, batch: ModelInputs, n_slots: int, generator: torch.Generator) -> Int[Tensor, "batch slot"]:
        if not self.engine.per_position:
            return _zeros(batch)
        if self.reference.kind == "pairs":
            return batch.last_positions.unsqueeze(1)
        return draw_positions(batch, n_slots, generator)

    def sample_bytes(self, inputs: ModelInputs) -> int:
        """Bytes that a stored sample takes, from one small batch."""
        return bytes_per_sample(storable(self.probe(inputs)), self.settings.kept_as)

    def _reserve(self, inputs: ModelInputs, n_samples: int) -> GradientStore:
        like = storable(self.probe(inputs))
        check_memory(n_samples, bytes_per_sample(like, self.settings.kept_as), self.budget)
        return GradientStore(n_samples, like, self.settings.kept_as)

    @property
    def budget(self) -> int:
        """Bytes that stored gradients may take."""
        limit = self.settings.max_memory_gib
        return self._half_of_free if limit is None else int(limit * 2**30)

    @property
    def _half_of_free(self) -> int:
        """Of the memory where the gradients lie."""
        return free_bytes(self.engine.subset.device) // 2

    def agreed(self, processes: Processes) -> "Harvester":
        """With a bound on memory that every process that shares the harvest can keep, where none was given."""
        if processes.n == 1 or self.settings.max_memory_gib is not None:
            return self
        n_bytes = processes.least(self._half_of_free // processes.n_on_machine)
        return replace(self, settings=replace(self.settings, max_memory_gib=n_bytes / 2**30))

    def probe(self, inputs: ModelInputs) -> Gradients:
        """Gradients of two rows, for their formats and shapes."""
        found: Gradients = {}
        rows = inputs.rows(slice(0, 2))
        self.engine.each_slot(
            rows, _zeros(rows), lambda output, *_: torch.ones_like(output), lambda _, part: found.update(part)
        )
        return found

    def batches(self, inputs: ModelInputs, n_slots: int) -> tuple[Tensor, ...]:
        """Rows in near-equal batches, none of a single sample, which could draw no other as its reference."""
        n_pos = inputs.n_pos if self.engine.per_position else 1
        size = self.settings.batch_size or max(1, min(1024, min(4096, self._most_positions) // n_pos))
        n_batches = max(1, len(inputs) // max(size, _least_rows(n_slots)))
        return torch.arange(len(inputs)).tensor_split(n_batches)

    @property
    def _most_positions(self) -> int:
        """Positions whose outputs take 512 MiB, where those of all positions exist together: shapes alone decide."""
        d_output = 0 if self.engine.routes.through_head else self.engine.adapter.d_vocab or 0
        return _MOST_OUTPUTS // max(1, d_output)


def _least_rows(n_slots: int) -> int:
    """Rows that make two samples: one to be compared with the other."""
    return 1 if n_slots > 1 else 2


def _zeros(inputs: ModelInputs) -> Int[Tensor, "batch one"]:
    return torch.zeros(len(inputs), 1, dtype=torch.long)


def draw_positions(inputs: ModelInputs, n_slots: int, generator: torch.Generator) -> Int[Tensor, "batch slot"]:
    """Real positions of each row, at random without replacement; a row shorter than `n_slots` repeats its own."""
    weights = torch.ones(len(inputs), inputs.n_pos) if inputs.mask is None else inputs.mask.cpu().float()
    order = torch.rand(weights.shape, generator=generator).add(weights * 2).argsort(1, descending=True)
    length = weights.sum(1).long().clamp(min=1)
    slot = torch.arange(n_slots).unsqueeze(0) % length.unsqueeze(1)
    return order.gather(1, slot)


def limited(settings: HarvestSettings, harvester: Harvester, inputs: ModelInputs) -> HarvestSettings:
    """The settings with `n_samples` set, where it was left open, to what fits in memory."""
    if settings.n_samples is not None:
        return settings
    fits = harvester.budget // harvester.sample_bytes(inputs)
    return replace(settings, n_samples=max(1, min(settings.max_samples, fits)))
