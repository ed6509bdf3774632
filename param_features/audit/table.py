"""What an audit found: one row per claim, each beside its controls, with pass or fail by a stated rule."""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from param_features.fitted import LEAST_GAIN, higher, lower

_WIDTH = 100


@dataclass(frozen=True)
class AuditRow:
    """One claim about the features, measured.

    Attributes:
        name: What is claimed.
        value: The number of the features; None where the row was not run.
        controls: The number of what must not do as well, by name.
        limit: The value passes from here (or up to here, where less is better).
        is_more_better: Which of the two.
        beaten: Controls that the value must also beat; the others stand there for comparison.
        margin: By how much.
        factor: Or how many times over.
        meaning: What the number is, with its unit.
    """

    name: str
    value: float | None
    controls: Mapping[str, float]
    limit: float
    is_more_better: bool
    meaning: str
    beaten: tuple[str, ...] = ()
    margin: float = 0.0
    factor: float = 1.0

    @property
    def passed(self) -> bool | None:
        """Whether the value keeps to the limit and beats the named controls; None where the row was not run."""
        if self.value is None:
            return None
        sign = 1 if self.is_more_better else -1
        keeps_to_limit = sign * self.value >= sign * self.limit
        return keeps_to_limit and all(self._beats(self.controls[name]) for name in self.beaten if name in self.controls)

    def _beats(self, control: float) -> bool:
        """By the row's own margin and factor, and by those that every verdict asks for."""
        assert self.value is not None
        sign = 1 if self.is_more_better else -1
        rival = control * self.factor**sign + sign * self.margin
        standing = higher(self.value, control) if self.is_more_better else lower(self.value, control)
        return sign * self.value > sign * rival and standing.is_better

    @property
    def verdict(self) -> str:
        """`pass`, `FAIL` or `not run`."""
        return {True: "pass", False: "FAIL", None: "not run"}[self.passed]

    @property
    def rule(self) -> str:
        """The rule by which the row passes, in words."""
        side = "at least" if self.is_more_better else "at most"
        if not self.beaten:
            return f"{side} {self.limit:g}"
        by = f" by {self.margin:g}" if self.margin else f" {self.factor:g} times over"
        by = f" by {LEAST_GAIN:.0%}" if not self.margin and self.factor == 1 else by
        return f"{side} {self.limit:g}, and {'above' if self.is_more_better else 'below'} {' and '.join(self.beaten)}{by}"

    def __repr__(self) -> str:
        """Three lines: verdict and number, controls, meaning."""
        value = "" if self.value is None else f"{self.value:.3g}"
        controls = ", ".join(f"{name} {number:.3g}" for name, number in self.controls.items())
        head = f"{self.verdict:<8}{self.name:<22}{value:>9}  ({self.rule})"
        lines = [head, f"{'':<30}{'beside':>9}  {controls}"] if controls else [head]
        return "\n".join([*lines, *textwrap.wrap(self.meaning, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)])


@dataclass(frozen=True)
class Audit:
    """Claims about a set of features, each beside what must not do as well.

    Attributes:
        rows: The table.
        curves: What the rows were read from, as the step grows: medians over features at each of `steps`.
        steps: ‖δ v‖ as shares of ‖W‖.
        seconds: What the audit cost, in CPU seconds of this process.
        record: Settings, for the record.
        methods: What stands side by side in `by_method`, the audited first; empty where it stands alone.
    """

    rows: tuple[AuditRow, ...]
    curves: Mapping[str, tuple[float, ...]]
    steps: tuple[float, ...]
    seconds: float
    record: Mapping[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> AuditRow:
        """The row of that name.

        Raises:
            KeyError: Lists the names.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"No row {name!r}; there are {', '.join(repr(row.name) for row in self.rows)}.")

    @property
    def n_passed(self) -> int:
        """How many rows pass."""
        return sum(row.passed is True for row in self.rows)

    @property
    def n_failed(self) -> int:
        """How many rows fail."""
        return sum(row.passed is False for row in self.rows)

    @property
    def by_method(self) -> str:
        """A table of every claim's number by method, for printing; a dash where a method does not make the claim."""
        names = self.methods or ("features",)
        lines = [("", *names, "passes")]
        for row in self.rows:
            values = (row.value, *(row.controls.get(name) for name in names[1:]))
            side = "at least" if row.is_more_better else "at most"
            shown = ("–" if value is None else f"{value:.3g}" for value in values)
            lines.append((row.name, *shown, f"{side} {row.limit:g}"))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)

    def __repr__(self) -> str:
        """The table, then the counts."""
        n_left = len(self.rows) - self.n_passed - self.n_failed
        tail = f"{self.n_passed} pass, {self.n_failed} fail, {n_left} not run; {self.seconds:.0f} CPU seconds"
        return "\n".join([*map(repr, self.rows), tail])
