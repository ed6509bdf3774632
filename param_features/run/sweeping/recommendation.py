"""The rule by which a sweep recommends a setting, and its reason in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from param_features.run.sweeping.row import SweepRow

Key = tuple[int, int, float]


@dataclass(frozen=True)
class Recommendation:
    """What is recommended.

    Attributes:
        place: Of the recommended fit among the rows; None where none is.
        reason: Why, in words.
    """

    place: int | None
    reason: str


@dataclass(frozen=True)
class _Candidate:
    """The fits of one setting, one per seed."""

    rows: tuple[SweepRow, ...]

    @property
    def key(self) -> Key:
        return self.rows[0].setting[:3]

    @property
    def cost(self) -> tuple[int, float]:
        return self.rows[0].size, self.rows[0].setting.l0

    @property
    def gain(self) -> float:
        return fmean(row.gain for row in self.rows)

    @property
    def is_eligible(self) -> bool:
        return all(row.is_eligible for row in self.rows)

    def __str__(self) -> str:
        n_features, rank, l0 = self.key
        return f"n_features={n_features}, rank={rank}, l0={l0:g}"


def recommend(rows: Sequence[SweepRow]) -> Recommendation:
    """The smallest setting that gains nearly as much over its controls as the best one.

    1. A setting is out if, with any seed, a control comes within `least_gain` of it or it collapsed; and if it has more
       features than there are parameters, so that no control has as many directions.
    2. Of the others, the gain is by what share the held-out error lies below the strongest control's at the same l0 and
       number of features, the mean over seeds. More features or a higher l0 lower the error of anything; the gain grows only
       while the features explain what a control of the same budget does not.
    3. Of the settings whose gain is at least 1 − `within` of the largest gain, the one with the smallest V_out is taken, and
       of equals the one with the least l0. Of its seeds, the one with the lowest error.
    """
    candidates = _candidates(rows)
    eligible = [candidate for candidate in candidates if candidate.is_eligible]
    if not eligible:
        return Recommendation(None, _why_none(rows))
    best = max(eligible, key=lambda candidate: candidate.gain)
    within = rows[0].limits.within
    near = [candidate for candidate in eligible if candidate.gain >= (1 - within) * best.gain]
    chosen = min(near, key=lambda candidate: candidate.cost)
    row = min(chosen.rows, key=lambda row: row.error)
    reason = " ".join([_why(chosen, row, best, within), *_cautions(chosen, candidates)])
    return Recommendation(list(rows).index(row), reason)


def _candidates(rows: Sequence[SweepRow]) -> list[_Candidate]:
    found: dict[Key, list[SweepRow]] = {}
    for row in rows:
        found.setdefault(row.setting[:3], []).append(row)
    return [_Candidate(tuple(own)) for own in found.values()]


def _why(chosen: _Candidate, row: SweepRow, best: _Candidate, within: float) -> str:
    beside = (
        f"{chosen}: error {row.error:.3f} on held-out samples, {row.gain:.0%} below {row.control}, its strongest control."
    )
    if chosen is best:
        return f"{beside} No setting lies further below its controls, and no smaller one comes within {within:.0%} of that."
    return f"{beside} It is the smallest setting within {within:.0%} of the largest gain, {best.gain:.0%} at {best}."


def _cautions(chosen: _Candidate, candidates: Sequence[_Candidate]) -> list[str]:
    """What to try next: fits that were cut short, and ends of the grid behind which something better may lie."""
    found = []
    if any(row.is_undertrained for row in chosen.rows):
        found.append("It is under-trained: its error was still falling, so give more steps=.")
    if any(row.is_overfit for row in chosen.rows):
        found.append("It is overfit: harvest more samples.")
    for place, name in enumerate(("n_features", "rank", "l0")):
        tried = sorted({candidate.key[place] for candidate in candidates})
        if len(tried) > 1 and chosen.key[place] == tried[-1]:
            found.append(f"It has the largest {name} tried: the gain may grow further beyond.")
    return found


def _why_none(rows: Sequence[SweepRow]) -> str:
    rows = [row for row in rows if not row.is_overcomplete]
    if not rows:
        return "none. Every setting has more features than there are parameters: ask for fewer."
    nearest = max(rows, key=lambda row: row.gain)
    limits, control = nearest.limits, nearest.controls[nearest.control]
    if not any(row.beats_controls for row in rows):
        side = "below" if nearest.gain > 0 else "above"
        return (
            f"none. No setting lies {limits.least_gain:.0%} and two standard errors below all of its controls. "
            f"The nearest, {nearest.setting}, is "
            f"{abs(nearest.gain):.1%} {side} {nearest.control} ({nearest.error:.3f} beside {control:.3f}). What a control "
            "matches shows nothing: try other parameters, more samples, or other n_features and l0."
        )
    return (
        "none. The settings that beat their controls collapsed (one feature does most of the work, or most features do "
        "none), or did not beat them with every seed. Try fewer features, another reference, or more samples."
    )
