"""`pf.sweep`: fits over l0, rank and number of features from one store of gradients."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from os import PathLike
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from param_features.fit import FitSettings, HessianSettings
from param_features.fitted import Fitted
from param_features.gradients import HarvestSettings
from param_features.gradients.disk import FactorStore
from param_features.measure import MeasureSettings, match
from param_features.params import ParamSpec
from param_features.problem import read_model
from param_features.run.decomposition import decompose
from param_features.run.harvesting import harvest as harvest_to_disk
from param_features.run.request import Request, check_request, default_fit
from param_features.run.sweeping.finished import Wanted, read_kept
from param_features.run.sweeping.row import SweepRow, row_of
from param_features.run.sweeping.settings import Setting, SweepSettings, grid
from param_features.run.sweeping.table import Sweep

_STORE = "store"


def sweep(
    model: Any,
    params: ParamSpec | None = None,
    tokens: Any = None,
    *,
    inputs: Any = None,
    store: str | PathLike | FactorStore | None = None,
    n_features: int | Sequence[int] = (50, 100, 200),
    rank: int | Sequence[int] = 1,
    l0: float | Sequence[float] = (2, 5, 10),
    seeds: int | Sequence[int] = 0,
    directory: str | PathLike | None = None,
    divergence: str | Callable[[Tensor, Tensor], Tensor] = "auto",
    reference: Any = None,
    output: Callable[[Any], Tensor] | None = None,
    tokenizer: Any = None,
    format: str = "matrix",
    method: str = "l3d",
    steps: int | None = None,
    n_samples: int | None = None,
    harvest: HarvestSettings | None = None,
    fit: FitSettings | HessianSettings | None = None,
    measure: MeasureSettings | None = None,
    settings: SweepSettings | None = None,
    progress: bool = True,
) -> Sweep[Fitted]:
    """Fit every combination of number of features, rank, l0 and seed to the same gradients, and recommend one, or none.

    Gradients are harvested once. Every fit is scored on the same held-out samples beside the controls of its own number of
    features and l0. Ctrl-C during a fit ends the sweep and returns the fits finished so far.

    Cost: one harvest, and the fit and the controls of `pf.decompose` for every combination. Disk: the store's, in a
    temporary folder where neither `store` nor `directory` is given.

    Args:
        model: As for `pf.decompose`; so are `params`, `tokens`, `inputs`, `divergence`, `reference`, `output`, `tokenizer`,
            `format`, `method`, `steps`, `n_samples`, `fit` and `measure`.
        params: Which parameters; the store's by default.
        tokens: Or texts; the store's by default.
        inputs: Instead of tokens.
        store: Gradients that `pf.harvest` took before, or their directory.
        n_features: One number or several.
        rank: One or several.
        l0: One or several; those above a number of features are left out there.
        seeds: Of the fits, one or several; the harvest takes the least. With several, a setting must beat its controls
            with each.
        directory: Where the store and every finished fit are kept; called again with the same arguments, the sweep goes on
            with what is missing. New combinations may be added, finished ones are read.
        divergence: What gradients are of.
        reference: What outputs are compared with.
        output: Takes what the model returns.
        tokenizer: For strings.
        format: How a feature is held during the fit.
        method: `"l3d"` or `"hessian"`; of the latter under-training is not judged.
        steps: Optimiser steps of every fit.
        n_samples: Samples to harvest.
        harvest: Further settings of harvesting.
        fit: Further settings of the fit.
        measure: Further settings of measuring.
        settings: What is flagged, and when a setting is recommended.
        progress: Whether to show progress bars and notices, on the error stream.

    Returns:
        A row per fit, the Pareto curve, the features themselves, and the recommendation with its reason.

    Raises:
        SettingError: A list is empty, or a setting is out of range.
        FeatureCountError: A number of features or l0 is out of range.
        RankError: A rank exceeds what the format can use.
        StoreError: The store is damaged or of something else, or a fit in `directory` was made otherwise.
        KeyboardInterrupt: Ctrl-C before the first fit was finished.
    """
    chosen = grid(n_features, rank, l0, seeds)
    common = {"method": method, "format": format, "fit": fit, "steps": steps, "measure": measure, "progress": progress}
    read = {"output": output, "tokenizer": tokenizer}
    data = {"tokens": tokens, "inputs": inputs, "divergence": divergence, "reference": reference, **read}
    opened = None if store is None else FactorStore.open(store)
    named = params if params is not None else [] if opened is None else opened.names
    requests = _checked(model, named, chosen, read, common)
    sampled = {"n_samples": n_samples, "settings": harvest, "seed": min(s.seed for s in chosen)}
    with _gradients(model, named, data, opened, directory, {**sampled, "progress": progress}) as kept:
        kept.check_count(max(setting.n_features for setting in chosen))
        given = data if opened is None else data | {"n_samples": n_samples, "harvest": harvest}
        call = {"params": named, "store": kept, **given, **common}
        folder = None if directory is None else Path(directory)
        run = _Run(model, call, kept, folder, settings or SweepSettings(), {**read, "divergence": divergence})
        return run.over(requests)


Requests = dict[Setting, tuple[Request, FitSettings | HessianSettings]]


def _checked(
    model: Any, params: ParamSpec, chosen: Sequence[Setting], read: dict[str, Any], common: dict[str, Any]
) -> Requests:
    """Every combination's request and fit settings, refused before the harvest where one is out of range."""
    subset = read_model(model, params, **read).subset
    found: Requests = {}
    for setting in chosen:
        n, rank, l0, seed = setting
        request = Request(common["method"], n, rank, common["format"], float(l0), seed, common["progress"])
        fit = common["fit"] or default_fit(request)
        fit = fit if common["steps"] is None else replace(fit, steps=common["steps"])
        check_request(request, fit, subset)
        found[setting] = request, fit
    return found


@contextmanager
def _gradients(
    model: Any,
    params: ParamSpec,
    data: dict[str, Any],
    opened: FactorStore | None,
    directory: str | PathLike | None,
    sampled: dict[str, Any],
) -> Iterator[FactorStore]:
    """The store: the one given, or one that is harvested now, into the sweep's folder or a temporary one."""
    if opened is not None:
        yield opened
        return
    asked = data | {"reference": "sample" if data["reference"] is None else data["reference"]}
    if directory is not None:
        yield harvest_to_disk(model, params, directory=Path(directory) / _STORE, **asked, **sampled)
        return
    with TemporaryDirectory(prefix="param_features-") as folder:
        yield harvest_to_disk(model, params, directory=folder, **asked, **sampled)


@dataclass(frozen=True)
class _Run:
    """A sweep whose gradients are there."""

    model: Any
    call: dict[str, Any]
    store: FactorStore
    folder: Path | None
    limits: SweepSettings
    loading: dict[str, Any]

    def over(self, requests: Requests) -> Sweep[Fitted]:
        """Fit or read every combination."""
        rows, fits = [], []
        for place, (setting, (request, fit)) in enumerate(requests.items()):
            request.say(f"sweep: fit {place + 1} of {len(requests)}, {setting}")
            features = self._features(setting, request, fit)
            if features is None:
                if not fits:
                    raise KeyboardInterrupt
                break
            held_out = self.store.on(features.references.device).held_out
            rows.append(row_of(features, setting, held_out, self.limits))
            fits.append(features)
        return Sweep(tuple(_agreeing(rows, fits)), tuple(fits), len(requests), self.store.summary)

    def _features(self, setting: Setting, request: Request, fit: FitSettings | HessianSettings) -> Fitted | None:
        """The fit of a setting; None where Ctrl-C ended it early."""
        if self.folder is None:
            found = self._fitted(setting)
            return found if found.config["steps_done"] == fit.steps else None
        wanted, place = self._wanted(request, fit), self.folder / setting.folder
        kept = read_kept(place, wanted, model=self.model, **self._code())
        if kept is not None:
            return kept
        found = self._fitted(setting)
        if found.config["steps_done"] < fit.steps:
            return None
        found.save_pretrained(place)
        return read_kept(place, wanted, model=self.model, **self._code())  # to the bit what the next call will read

    def _fitted(self, setting: Setting) -> Fitted:
        return decompose(self.model, **setting._asdict(), **self.call)

    def _wanted(self, request: Request, fit: FitSettings | HessianSettings) -> Wanted:
        """What the record of a kept fit must say."""
        asked = {name: value for name, value in asdict(request).items() if name != "progress"}
        measure = self.call["measure"] or MeasureSettings()
        made = {"fit": asdict(fit), "measure": asdict(measure), "steps_done": fit.steps}
        return {**asked, **made, "gradients": self.store.summary["recipe_sha256"]}

    def _code(self) -> dict[str, Any]:
        """What saved features do not hold."""
        divergence = self.loading["divergence"]
        return {**self.loading, "divergence": divergence if callable(divergence) else None}


def _agreeing(rows: list[SweepRow], fits: list[Fitted]) -> list[SweepRow]:
    """The rows with the agreement of every fit with those of other seeds, where there are any."""
    cosines: dict[int, list[float]] = {}
    for a, b in combinations(range(len(rows)), 2):
        if rows[a].setting[:3] == rows[b].setting[:3]:
            cosine = match(fits[a], fits[b]).mean_cosine
            cosines.setdefault(a, []).append(cosine)
            cosines.setdefault(b, []).append(cosine)
    return [replace(row, agreement=fmean(cosines[n])) if n in cosines else row for n, row in enumerate(rows)]
