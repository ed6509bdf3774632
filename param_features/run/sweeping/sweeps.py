"""`pf.sweep`: fits over l0, rank and number of features from one store of gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from os import PathLike
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from param_features.errors import SettingError
from param_features.files import new_folder
from param_features.fit.components import ComponentSettings
from param_features.fitted import Fitted
from param_features.gradients import HarvestSettings
from param_features.gradients.disk import FactorStore
from param_features.machine import launched, own_modes, public
from param_features.measure import match
from param_features.params import ParamSpec
from param_features.problem import Problem, check_curved, read_model, say_notices
from param_features.run.from_gradients import Decomposition
from param_features.run.from_weights import ComponentRun, refuse_foreign
from param_features.run.harvesting import harvest as harvest_to_disk
from param_features.run.record import settings_record
from param_features.run.request import (
    MethodSettings,
    Request,
    check_request,
    component_settings,
    leaves_batch_open,
    method_settings,
    read_fit,
)
from param_features.run.sweeping.components import ComponentSweep, sweep_components, weights_around
from param_features.run.sweeping.finished import read_finished
from param_features.run.sweeping.row import SweepRow, row_of
from param_features.run.sweeping.settings import Setting, SweepSettings, grid, listed
from param_features.run.sweeping.table import Sweep

_STORE = "store"


@public
@own_modes()
def sweep(
    model: Any,
    params: ParamSpec | None = None,
    tokens: Any = None,
    *,
    inputs: Any = None,
    store: str | PathLike | FactorStore | None = None,
    n_features: int | Sequence[int] | Mapping[str, int] | None = None,
    rank: int | Sequence[int] | None = None,
    l0: float | Sequence[float] | None = None,
    importance_weight: float | Sequence[float] | None = None,
    seeds: int | Sequence[int] = 0,
    directory: str | PathLike | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    positions: Any = "all",
    tokenizer: Any = None,
    method: str = "l3d",
    steps: int | None = None,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: MethodSettings | ComponentSettings | Mapping[str, Any] | str | None = None,
    settings: SweepSettings | None = None,
    progress: bool = True,
) -> Sweep[Fitted] | ComponentSweep[Fitted]:
    """Fit every combination of number of features, rank, l0 and seed to the same gradients, and recommend one, or none.

    Gradients are harvested once. Every fit is scored on the same held-out samples beside the controls of its own number of
    features and l0. Ctrl-C during a fit ends the sweep and returns the fits finished so far.

    Of `method="components"` the importance weight is varied instead, and the largest is recommended with which the output
    stays; see `ComponentSweep`.

    Cost: one harvest, and the fit and the controls of `pf.decompose` for every combination. Disk: the store's, in a
    temporary folder where neither `store` nor `directory` is given.

    Args:
        model: As for `pf.decompose`; so are `params`, `tokens`, `inputs`, `divergence`, `reference`, `output`,
            `positions`, `tokenizer`, `method`, `steps`, `n_samples`, `harvest` and `fit`.
        params: Which parameters; the store's by default.
        tokens: Or texts; the store's by default.
        inputs: Instead of tokens.
        store: Gradients that `pf.harvest` took before, or their directory.
        n_features: One number or several; 50, 100 and 200 by default. Of components as for `pf.decompose`.
        rank: One or several; that of `fit` by default, or 1.
        l0: One or several; those above a number of features are left out there; 2, 5 and 10 by default.
        importance_weight: Of components, one or several; by default five, half a decade apart, around that of `fit`. A
            frequency weight changes in proportion.
        seeds: Of the fits, one or several; the harvest takes the least. With several, a setting must beat its controls
            with each.
        directory: Where the store and every finished fit are kept; called again with the same arguments, the sweep goes on
            with what is missing. New combinations may be added, finished ones are read.
        divergence: What gradients are of.
        reference: What outputs are compared with.
        output: Takes what the model returns.
        positions: Which positions are samples.
        tokenizer: For strings.
        method: `"l3d"`, `"hessian"`, of which under-training is not judged, or `"components"`.
        steps: Optimiser steps of every fit.
        n_samples: Samples to harvest.
        harvest: Further settings of harvesting.
        fit: Further settings of the fit; `rank` overrides its own.
        settings: What is flagged, and when a setting is recommended.
        progress: Whether to show progress bars and what is going on, on the error stream.

    Returns:
        A row per fit, the Pareto curve, the features themselves, and the recommendation with its reason; a `ComponentSweep`
        of components.

    Raises:
        SettingError: A list is empty, or a setting is out of range.
        FeatureCountError: A number of features or l0 is out of range.
        RankError: A rank exceeds what the format can use.
        StoreError: The store is damaged or of something else, or a fit in `directory` was made otherwise.
        KeyboardInterrupt: Ctrl-C before the first fit was finished.
    """
    if directory is not None:
        directory = new_folder(directory)
    if method == "components":
        refuse_foreign(reference, harvest, store=store, l0=l0, rank=rank)
        taken = harvest or HarvestSettings()
        every_seed = listed(seeds)
        places: Any = positions if callable(positions) else None
        component_run = ComponentRun.of(
            model,
            params,
            tokens,
            inputs,
            n_features=_counts(n_features),
            divergence=divergence,
            output=output,
            positions=positions,
            tokenizer=tokenizer,
            seed=int(every_seed[0]),
            progress=progress and launched().is_main,
            harvest=taken if n_samples is None else replace(taken, n_samples=n_samples),
            fit=component_settings(fit, steps=steps),
            processes=launched(),
        )
        return sweep_components(
            component_run,
            weights_around(component_run.fit.importance_weight) if importance_weight is None else listed(importance_weight),
            [int(seed) for seed in every_seed],
            directory=None if directory is None else Path(directory),
            read=partial(
                read_finished,
                model=model,
                divergence=divergence if callable(divergence) else None,
                output=output,
                positions=places,
                tokenizer=tokenizer,
            ),
            limits=settings or SweepSettings(),
        )
    if importance_weight is not None or isinstance(n_features, Mapping):
        raise SettingError(f"importance_weight= and n_features= as a dict are for method='components', not {method!r}.")
    n_features, l0 = (50, 100, 200) if n_features is None else n_features, (2, 5, 10) if l0 is None else l0
    fit = read_fit(method, fit)
    usual_rank = 1 if fit is None else fit.rank
    settings_grid = grid(n_features, usual_rank if rank is None else rank, l0, seeds)
    opened = None if store is None else FactorStore.open(store)
    names = params if params is not None else [] if opened is None else opened.names
    chosen = read_model(model, names, tokenizer=tokenizer, output=output)
    jobs = [_job(setting, method, fit, steps, progress) for setting in settings_grid]
    for job in jobs:
        check_request(job.request, job.fit, chosen.subset)
    with ExitStack() as stack:
        if opened is None:
            folder = stack.enter_context(_store_folder(directory))
            gradients = harvest_to_disk(
                model,
                names,
                tokens,
                directory=folder,
                inputs=inputs,
                divergence=divergence,
                reference="sample" if reference is None else reference,
                output=output,
                positions=positions,
                tokenizer=tokenizer,
                n_samples=n_samples,
                settings=harvest,
                seed=min(setting.seed for setting in settings_grid),
                progress=progress,
            )
            taken = gradients.settings
        else:
            gradients, taken = opened, harvest or opened.settings
            taken = taken if n_samples is None else replace(taken, n_samples=n_samples)
        gradients.check_count(max(setting.n_features for setting in settings_grid))
        problem = gradients.problem(
            chosen,
            tokens,
            inputs,
            divergence=divergence,
            reference=reference,
            positions=positions,
            settings=taken,
            method=method,
        )
        if method == "hessian":
            check_curved(problem.divergence)
        say_notices(problem, None, jobs[0].request.say)
        code = divergence if callable(divergence) else None
        places = positions if callable(positions) else None
        read = partial(read_finished, model=model, divergence=code, output=output, positions=places, tokenizer=tokenizer)
        kept_in = None if directory is None else Path(directory)
        limits = settings or SweepSettings()
        return _Sweeping(problem, taken, gradients, leaves_batch_open(fit), kept_in, read, limits).over(jobs)


def _counts(n_features: Any) -> int | Mapping[str, int] | None:
    """Components of each matrix.

    Raises:
        SettingError: There are several numbers: the weight is what a sweep of components varies.
    """
    if isinstance(n_features, Sequence):
        raise SettingError(
            f"n_features={n_features!r}: a sweep of components varies importance_weight=. Give one number, or one of each "
            "matrix."
        )
    return n_features


@dataclass(frozen=True)
class _Job:
    """One fit of a sweep."""

    setting: Setting
    request: Request
    fit: MethodSettings


def _job(setting: Setting, method: str, fit: MethodSettings | None, steps: int | None, progress: bool) -> _Job:
    """The fit of a setting; errors are those of `method_settings`."""
    request = Request(method, setting.n_features, float(setting.l0), setting.seed, progress and launched().is_main)
    return _Job(setting, request, method_settings(method, fit, steps=steps, rank=setting.rank))


@contextmanager
def _store_folder(directory: str | PathLike | None) -> Iterator[Path]:
    """Where gradients are harvested to: the sweep's folder, or a temporary one."""
    if directory is not None:
        yield Path(directory) / _STORE
        return
    with TemporaryDirectory(prefix="param_features-") as folder:
        yield Path(folder)


@dataclass(frozen=True)
class _Sweeping:
    """A sweep whose gradients are there.

    Attributes:
        problem: What the gradients are of.
        harvest: How they were taken.
        store: Where they lie.
        is_batch_open: Whether a fit's batch may be made smaller where memory wants it.
        folder: Where finished fits are kept; None where they are not.
        read: Reads a finished fit of a folder, where its record says what it must.
        limits: What is flagged, and when a setting is recommended.
    """

    problem: Problem
    harvest: HarvestSettings
    store: FactorStore
    is_batch_open: bool
    folder: Path | None
    read: Callable[[Path, Mapping[str, Any]], Fitted | None]
    limits: SweepSettings

    def over(self, jobs: Sequence[_Job]) -> Sweep[Fitted]:
        """Fit or read every combination; Ctrl-C ends the sweep with those that are finished."""
        rows, fits = [], []
        for place, job in enumerate(jobs):
            job.request.say(f"sweep: fit {place + 1} of {len(jobs)}, {job.setting}")
            features = self._features(job)
            if features is None:
                if not fits:
                    raise KeyboardInterrupt
                break
            held_out = self.store.on(features.references.device).held_out
            rows.append(row_of(features, job.setting, held_out, self.limits))
            fits.append(features)
        return Sweep(tuple(_agreeing(rows, fits)), tuple(fits), len(jobs), self.store.summary)

    def _features(self, job: _Job) -> Fitted | None:
        """The fit of a setting; None where Ctrl-C ended it early."""
        if self.folder is None:
            features = self._fitted(job)
            return features if self._is_finished(features, job) else None
        place = self.folder / job.setting.folder
        finished = self._read(place, job)
        if finished is not None:
            return finished
        features = self._fitted(job)
        if not self._is_finished(features, job):
            return None
        features.save_pretrained(place)
        return self._read(place, job)  # to the bit what the next call will read

    def _fitted(self, job: _Job) -> Fitted:
        run = Decomposition(
            problem=self.problem,
            request=job.request,
            harvest=self.harvest,
            fit=job.fit,
            store=self.store,
            is_batch_open=self.is_batch_open,
            processes=launched(),
        )
        return run.fitted()

    @staticmethod
    def _is_finished(features: Fitted, job: _Job) -> bool:
        return features.config["steps_done"] == job.fit.steps

    def _read(self, place: Path, job: _Job) -> Fitted | None:
        """The finished fit in a folder, None where there is none."""
        record = job.request.record(job.fit) | settings_record(self.harvest, job.fit)
        wanted = record | {"steps_done": job.fit.steps, "gradients": self.store.summary["recipe_sha256"]}
        return self.read(place, wanted)


def _agreeing(rows: list[SweepRow], fits: list[Fitted]) -> list[SweepRow]:
    """The rows with the agreement of every fit with those of other seeds, where there are any."""
    cosines: dict[int, list[float]] = {}
    for a, b in combinations(range(len(rows)), 2):
        if rows[a].setting[:3] == rows[b].setting[:3]:
            cosine = match(fits[a], fits[b]).mean_cosine
            cosines.setdefault(a, []).append(cosine)
            cosines.setdefault(b, []).append(cosine)
    return [replace(row, agreement=fmean(cosines[n])) if n in cosines else row for n, row in enumerate(rows)]
