"""`pf.sweep(method="components")`: fits over the importance weight, and which weight to take."""

import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from param_features.errors import SettingError, StoreError
from param_features.files import alone_in, write_whole
from param_features.fitted import Fitted
from param_features.gradients.disk import refuse_differences
from param_features.machine import launched
from param_features.run.estimation.component_sizes import check_room
from param_features.run.from_weights import ComponentRun
from param_features.run.record import settings_record
from param_features.run.sweeping.settings import SweepSettings

_HALF_DECADES = (-2, -1, 0, 1, 2)
_WIDTH = 110
_RECIPE = "recipe.json"

Features = TypeVar("Features", bound=Fitted)
Read = Callable[[Path, Mapping[str, Any]], Fitted | None]


def weights_around(weight: float) -> tuple[float, ...]:
    """Five importance weights, half a decade apart, with the given one in the middle."""
    return tuple(float(f"{weight * 10 ** (half / 2):.3g}") for half in _HALF_DECADES)


@dataclass(frozen=True)
class ComponentRow:
    """One fit of a sweep over the importance weight.

    Attributes:
        weight: The importance weight.
        seed: Of the fit.
        metrics: What was measured on held-out rows, beside controls.
        matched_by: Controls that do as well at the same l0.
        limits: By which it is judged.
    """

    weight: float
    seed: int
    metrics: Mapping[str, float]
    matched_by: tuple[str, ...]
    limits: SweepSettings

    def share(self, name: str) -> float:
        """A divergence under masks, as a share of that with nothing of the matrices left."""
        return self.metrics[name] / max(self.metrics["all_zero"], 1e-30)

    @property
    def is_eligible(self) -> bool:
        """Whether the output stays: under drawn masks, and with all components on and without Δ."""
        limits = self.limits
        return self.share("stochastic") <= limits.stochastic_within and self.share("unmasked") <= limits.unmasked_within


@dataclass(frozen=True)
class ComponentSweep(Generic[Features]):
    """Fits of components over the importance weight, each beside its controls.

    Attributes:
        rows: One per fit, the smallest weight first.
        fits: The components of each row.
        n_asked: Fits that were asked for; more than there are rows after Ctrl-C.
    """

    rows: tuple[ComponentRow, ...]
    fits: tuple[Features, ...] = field(repr=False)
    n_asked: int

    @property
    def place(self) -> int | None:
        """Which row is recommended: of the largest weight of which every seed's fit is eligible, the least `stochastic`."""
        weights = sorted({row.weight for row in self.rows}, reverse=True)
        for weight in weights:
            own = [place for place, row in enumerate(self.rows) if row.weight == weight]
            if all(self.rows[place].is_eligible for place in own):
                return min(own, key=lambda place: self.rows[place].metrics["stochastic"])
        return None

    @property
    def recommended(self) -> Features | None:
        """The components of the recommended weight; None where none is."""
        return None if self.place is None else self.fits[self.place]

    @property
    def reason(self) -> str:
        """Why the recommended weight is recommended, or why none is."""
        limits, place = self.rows[0].limits, self.place
        rule = (
            f"D stays within {limits.stochastic_within:.1%} (stochastic) and {limits.unmasked_within:.1%} (unmasked) of "
            "what switching the matrices off costs"
        )
        if place is None:
            least = self.rows[0]
            return (
                f"none. With no weight {rule}; at the smallest, {least.weight:g}, it is {least.share('stochastic'):.1%} and "
                f"{least.share('unmasked'):.1%}. Give more steps=, smaller importance_weight= or a larger "
                "faithfulness_weight of fit=."
            )
        row = self.rows[place]
        found = [f"importance_weight={row.weight:g}: the largest weight with which {rule}; l0 {row.metrics['l0']:.1f}."]
        if len(self.rows) > 1 and row.weight == self.rows[-1].weight:
            found.append("It is the largest weight tried: a larger one may do.")
        if row.matched_by:
            found.append(f"It has shown nothing beyond {', '.join(row.matched_by)}, which did as well at the same l0.")
        return " ".join(found)

    def as_rows(self) -> list[dict[str, Any]]:
        """One flat dict per fit: for a table of your own."""
        return [
            {
                "importance_weight": row.weight,
                "seed": row.seed,
                **row.metrics,
                "matched_by": ", ".join(row.matched_by),
                "is_eligible": row.is_eligible,
                "is_recommended": number == self.place,
            }
            for number, row in enumerate(self.rows)
        ]

    def __repr__(self) -> str:
        """The table, then the recommendation."""
        lines = [_HEAD, *(_line(row, number == self.place) for number, row in enumerate(self.rows))]
        if len(self.rows) < self.n_asked:
            lines.append(f"Interrupted after {len(self.rows)} of {self.n_asked} fits.")
        reason = textwrap.fill(self.reason, _WIDTH, initial_indent="recommended: ", subsequent_indent="  ")
        return "\n".join([*lines, reason])


_SHOWN = ("unmasked", "stochastic", "rounded", "all_zero", "l0", "alive")
_HEAD = f"{'weight':>8} {'seed':>4} " + " ".join(f"{name:>10}" for name in _SHOWN) + "    matched by"


def _line(row: ComponentRow, is_chosen: bool) -> str:
    values = " ".join(f"{row.metrics[name]:10.4g}" for name in _SHOWN)
    return f"{row.weight:8.3g} {row.seed:>4} {values}  {'>' if is_chosen else ' '} {', '.join(row.matched_by)}".rstrip()


def sweep_components(
    run: ComponentRun,
    weights: Sequence[float],
    seeds: Sequence[int],
    *,
    directory: Path | None,
    read: Read,
    limits: SweepSettings,
) -> ComponentSweep[Fitted]:
    """Fit, or read, every weight with every seed; Ctrl-C ends the sweep with those that are finished.

    Args:
        run: One of the fits, read and checked. A frequency weight changes with the importance weight, in proportion.
        weights: Importance weights.
        seeds: Of the fits.
        directory: Where finished fits are kept.
        read: Reads a finished fit of a folder, where its record says what it must.
        limits: When a weight is recommended.

    Raises:
        StoreError: The folder holds a sweep of something else.
        KeyboardInterrupt: Ctrl-C before the first fit was finished.
    """
    jobs = [_with(run, weight, seed) for weight in sorted(set(weights)) for seed in sorted(set(seeds))]
    rows, fits = [], []
    check_room(run)
    with ExitStack() as stack:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            launched().from_main(lambda: stack.enter_context(alone_in(directory, "sweep")))
            _refuse_others(run, directory)
        for place, job in enumerate(jobs):
            weight, seed = job.fit.importance_weight, job.request.seed
            run.request.say(f"sweep: fit {place + 1} of {len(jobs)}, importance_weight={weight:g}, seed={seed}")
            fitted = _finished(job, directory, read)
            if fitted is None:
                if not fits:
                    raise KeyboardInterrupt
                break
            metrics = fitted.metrics
            rows.append(ComponentRow(weight, seed, dict(metrics), tuple(metrics.matched_by), limits))
            fits.append(fitted)
    return ComponentSweep(tuple(rows), tuple(fits), len(jobs))


def _with(run: ComponentRun, weight: float, seed: int) -> ComponentRun:
    if not weight > 0:
        raise SettingError(f"importance_weight={weight} must be positive: give one number or several.")
    usual = run.fit.importance_weight
    frequency = run.fit.frequency_weight * weight / usual if usual else run.fit.frequency_weight
    fit = replace(run.fit, importance_weight=float(weight), frequency_weight=frequency)
    return replace(run, fit=fit, request=replace(run.request, seed=int(seed)))


def _finished(job: ComponentRun, directory: Path | None, read: Read) -> Fitted | None:
    """The fit of a weight; None where Ctrl-C ended it early."""
    wanted = job.request.record() | settings_record(job.harvest, job.fit) | {"steps_done": job.fit.steps}
    place = None
    if directory is not None:
        place = directory / f"importance_weight-{job.fit.importance_weight:g}-seed-{job.request.seed}"
        kept = read(place, wanted)
        if kept is not None:
            return kept
    fitted = job.fitted()
    if fitted.config["steps_done"] != job.fit.steps:
        return None
    if place is None:
        return fitted
    fitted.save_pretrained(place)
    return read(place, wanted)  # to the bit what the next call will read


def _refuse_others(run: ComponentRun, directory: Path) -> None:
    """Note what a folder's fits are of, or refuse those of something else.

    Raises:
        StoreError: They are.
    """
    path, wanted = directory / _RECIPE, run.data_recipe()
    if path.exists():
        try:
            recorded = json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path} is damaged. Give another directory=.") from error
        then = "Give the same arguments to go on with it, or another directory=."
        refuse_differences(recorded, wanted, where=str(directory), then=then, was="is of another sweep")
    elif launched().is_main:
        write_whole(path, json.dumps(wanted).encode())
