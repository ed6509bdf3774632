"""What a sweep returns: its rows, its fits, the Pareto curve and what it recommends."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from param_features.fitted import Fitted
from param_features.run.sweeping.recommendation import Recommendation, recommend
from param_features.run.sweeping.row import SweepRow

_WIDTH = 110

Features = TypeVar("Features", bound=Fitted)


@dataclass(frozen=True)
class Sweep(Generic[Features]):
    """Fits over l0, rank and number of features from one store, each beside its controls.

    Attributes:
        rows: One per fit, the smallest setting first.
        fits: The features of each row.
        n_asked: Fits that were asked for; more than there are rows after Ctrl-C.
        record: Where the gradients came from, for the record.
    """

    rows: tuple[SweepRow, ...]
    fits: tuple[Features, ...] = field(repr=False)
    n_asked: int
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recommendation(self) -> Recommendation:
        """Which row, and why; or why none. See `param_features.run.sweeping.recommendation.recommend` for the rule."""
        return recommend(self.rows)

    @property
    def reason(self) -> str:
        """Why the recommended setting is recommended, or why none is."""
        return self.recommendation.reason

    @property
    def recommended(self) -> Features | None:
        """The features of the recommended setting; None where none is."""
        place = self.recommendation.place
        return None if place is None else self.fits[place]

    @property
    def best(self) -> Features | None:
        """The features with the lowest held-out error of those that may be recommended, or None."""
        places = [place for place, row in enumerate(self.rows) if row.is_eligible]
        return self.fits[min(places, key=lambda place: self.rows[place].error)] if places else None

    @property
    def pareto(self) -> tuple[SweepRow, ...]:
        """Rows that no other matches in error, l0 and size at once while it is better in one of them."""
        return tuple(row for row in self.rows if not any(_dominates(other, row) for other in self.rows))

    def as_rows(self) -> list[dict[str, Any]]:
        """One flat dict per fit: for a table of your own."""
        pareto, place = self.pareto, self.recommendation.place
        return [
            {
                **row.setting._asdict(),
                "size": row.size,
                "reconstruction_error": row.error,
                "training_error": row.training_error,
                **row.controls,
                "gain": row.gain,
                "dead": row.dead,
                "top_kept": row.top_kept,
                "top_norm": row.top_norm,
                "fall": row.fall,
                "agreement": row.agreement,
                "flags": ", ".join(row.flags),
                "is_pareto": row in pareto,
                "is_recommended": number == place,
            }
            for number, row in enumerate(self.rows)
        ]

    def __repr__(self) -> str:
        """The table, then the recommendation."""
        pareto, place = self.pareto, self.recommendation.place
        lines = [_HEAD, *(_line(row, row in pareto, number == place) for number, row in enumerate(self.rows))]
        if len(self.rows) < self.n_asked:
            lines.append(f"Interrupted after {len(self.rows)} of {self.n_asked} fits.")
        lines.append("p: on the Pareto curve of error, l0 and size. below: than the strongest control.")
        reason = textwrap.fill(self.reason, _WIDTH, initial_indent="recommended: ", subsequent_indent="  ")
        return "\n".join([*lines, reason])


_CONTROLS = ("control_pca", "control_random", "control_svd_w")
_HEAD = (
    f"{'n_features':>10} {'rank':>4} {'l0':>5} {'seed':>4} {'size':>9} {'error':>6} {'train':>6} "
    f"{'pca':>6} {'random':>6} {'svd_w':>6} {'below':>6}    flags"
)


def _line(row: SweepRow, is_pareto: bool, is_chosen: bool) -> str:
    n_features, rank, l0, seed = row.setting
    controls = " ".join(f"{row.controls[name]:6.3f}" for name in _CONTROLS)
    mark = f"{'p' if is_pareto else ' '}{'>' if is_chosen else ' '}"
    return (
        f"{n_features:>10} {rank:>4} {l0:>5g} {seed:>4} {row.size:>9,} {row.error:6.3f} {row.training_error:6.3f} "
        f"{controls} {max(row.gain, -9.99):>6.0%} {mark} {', '.join(row.flags)}"
    ).rstrip()


def _dominates(one: SweepRow, other: SweepRow) -> bool:
    a, b = ((row.error, row.setting.l0, row.size) for row in (one, other))
    return a != b and all(x <= y for x, y in zip(a, b, strict=True))
