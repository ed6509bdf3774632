"""`checkpoints=`: where a decomposition keeps what it has done, and goes on from after a kill."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from param_features.errors import SettingError
from param_features.files import alone_in, new_folder
from param_features.fit import Checkpoints, OffTarget, read_newest, refuse_other_fit
from param_features.gradients import HarvestSettings, SampleGradients, plan_samples
from param_features.gradients.disk import Compression, FactorStore, Recipe, harvested, recipe_of, sum_of_data
from param_features.machine import launched, public
from param_features.problem import Problem, ReadBackground, Stage, stage_generator
from param_features.run.request import MethodSettings, Request

SHARD_MIB = 256.0
"""What a kill of the harvest loses at most."""

_GRADIENTS = "gradients"
_FIT, _TARGET, _BACKGROUND = _TITLES = "fit", "fit-target", "fit-background"
"""The fit to all samples alike; beside a background, those of the target's features and of the background's own."""


_BITS = "bits"
"""The recipe's entry that tells the gradients themselves, which come after the rest of it is known."""


@dataclass(frozen=True)
class Job:
    """What decides the outcome of a decomposition, read and checked.

    Attributes:
        store: Gradients that were given; None where they are harvested.
    """

    problem: Problem
    request: Request
    harvest: HarvestSettings
    fit: MethodSettings
    background: ReadBackground | None
    store: FactorStore | None

    def gradients(self) -> Recipe:
        """What decides the gradients. Cost: hashes the model's weights and the data."""
        if self.store is not None:
            return self.store.manifest.recipe
        return recipe_of(self.problem, self.harvest, seed=self.request.seed, shard_mib=SHARD_MIB, compression=Compression())

    def recipe(self, gradients: Recipe) -> Recipe:
        """All that decides what a fit finds, but for the gradients' own bits."""
        own = {f"gradients.{name}" if name in ("seed", "shard_mib") else name: value for name, value in gradients.items()}
        request, settings = self.request.record(self.fit), asdict(self.fit)
        fit = {f"fit.{name}": value for name, value in settings.items() if name not in request}
        return own | request | fit | self._background()

    def _background(self) -> Recipe:
        if self.background is None:
            return {"background": None}
        asked = self.background.settings
        sizes = {"n_features": asked.n_features, "weight": asked.weight, "n_samples": asked.n_samples}
        named = {f"background.{name}": value for name, value in sizes.items()}
        return {"background": sum_of_data(self.background.problem.data)} | named


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of checkpoints that no other process writes to.

    Attributes:
        directory: Where it lies.
        recipe: See `Job.recipe`.
        every: Seconds from one checkpoint to the next.
        has_gradients: Whether the gradients lie in it too.
    """

    directory: Path
    recipe: Recipe
    every: float
    has_gradients: bool

    def checkpoints(self, store: SampleGradients, n_features: int | None, off_target: OffTarget | None) -> Checkpoints:
        """Of one fit. Cost: a pass over the gradients, whose norms tell them from others.

        Args:
            store: The gradients that are fitted.
            n_features: Where they are not all of those asked for.
            off_target: What features cost by acting on a background.
        """
        title = _FIT if n_features is None else _BACKGROUND if off_target is None else _TARGET
        stores = [store] if off_target is None else [store, off_target.store]
        recipe = self.recipe | {_BITS: _norms_sum(stores)}
        return Checkpoints(self._path(title), recipe, self.every, is_written=launched().is_main)

    def of_components(self) -> Checkpoints:
        """Of a fit that takes no gradients."""
        return Checkpoints(self._path(_FIT), self.recipe, self.every, is_written=launched().is_main)

    def refuse_others(self) -> None:
        """Refuse what was begun here with other arguments, before anything is computed.

        Raises:
            StoreError: A checkpoint is damaged, or of a fit to something else.
        """
        for path in map(self._path, _TITLES):
            found = read_newest(path)
            if found is not None:
                bits = {_BITS: found.recipe[_BITS]} if _BITS in found.recipe else {}
                refuse_other_fit(found.recipe, self.recipe | bits, path)

    def _path(self, title: str) -> Path:
        return self.directory / f"{title}.safetensors"


@public
@dataclass(frozen=True)
class CheckpointSettings:
    """Where and how often a decomposition keeps what it has done.

    Attributes:
        directory: The folder; made where it is missing.
        every: Seconds of the fit from one checkpoint to the next; 0 keeps one after every step.
    """

    directory: str | PathLike
    every: float = 60.0

    @classmethod
    def of(cls, given: "str | PathLike | CheckpointSettings") -> "CheckpointSettings":
        """Read what was given as `checkpoints=`."""
        return given if isinstance(given, CheckpointSettings) else cls(given)

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.every < 0:
            raise SettingError(
                f"every={self.every} of pf.CheckpointSettings must not be negative: seconds, or 0 for one after each step."
            )

    def folder(self) -> Path:
        """The folder, made where it is missing.

        Raises:
            SettingError: It is a file.
        """
        folder = new_folder(self.directory)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


@contextmanager
def kept_in(settings: CheckpointSettings, recipe: Recipe, *, has_gradients: bool = False) -> Iterator[CheckpointFolder]:
    """Where fits keep their checkpoints, to which no other process writes within the block.

    Args:
        settings: Which folder, and how often.
        recipe: All that decides what is found, but for the gradients' own bits.
        has_gradients: Whether the gradients lie there too.

    Raises:
        SettingError: The folder is a file.
        StoreError: The folder holds what was begun with other arguments, data or weights, or a damaged checkpoint; or
            another process writes to it.
    """
    directory = settings.folder()
    with ExitStack() as stack:
        launched().from_main(lambda: stack.enter_context(alone_in(directory, "decomposition")))
        folder = CheckpointFolder(directory, recipe, settings.every, has_gradients)
        folder.refuse_others()
        yield folder


@contextmanager
def resumable(settings: CheckpointSettings, job: Job) -> Iterator[tuple[FactorStore, CheckpointFolder]]:
    """The gradients, harvested to the folder where none were given, and where fits keep their checkpoints.

    Raises:
        SettingError: The folder is a file.
        StoreError: The folder holds what was begun with other arguments, data or weights, or a damaged checkpoint; or
            another process writes to it.
        SampleCountError: There would be fewer training samples than features.
        DiskFullError: The gradients do not fit.
    """
    settings.folder()  # refused before anything is hashed
    request, gradients = job.request, job.gradients()
    with kept_in(settings, job.recipe(gradients), has_gradients=job.store is None) as folder:
        if job.store is not None:
            yield job.store, folder
            return
        plan_samples(job.problem, job.harvest, request.n_features, stage_generator(request.seed, Stage.PLAN))
        store = harvested(
            job.problem,
            job.harvest,
            gradients,
            folder.directory / _GRADIENTS,
            say=request.say,
            progress=request.progress,
            compression=Compression(),
        )
        yield store, folder


def _norms_sum(stores: list[SampleGradients]) -> str:
    """SHA-256 of every sample's norm."""
    found = hashlib.sha256()
    for store in stores:
        found.update(store.square_norm().cpu().numpy().tobytes())
    return found.hexdigest()
