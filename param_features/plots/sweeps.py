"""A sweep's errors against what was varied, each line beside its strongest control."""

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean
from typing import TYPE_CHECKING, Any

from param_features.errors import SettingError, nearest
from param_features.machine import public
from param_features.plots.figures import COLOURS, GREYS, laid_out, plotly
from param_features.run import Sweep, SweepRow

if TYPE_CHECKING:
    import plotly.graph_objects as go

_AXES = {
    "l0": "l0: features kept per sample, mean",
    "n_features": "number of features",
    "size": "numbers in V_out: features · rank · (d_out + d_in)",
}
_NAMES = {"n_features": "{} features", "rank": "rank {}", "l0": "l0 {:g}"}


@public
def sweep(found: Sweep, against: str = "l0") -> "go.Figure":
    """Draw the held-out error of every fit, one line for all that else was the same, its strongest control dashed.

    A star marks the recommended fit, a cross what may not be recommended, an open circle what is
    under-trained or overfit. With several seeds, points are means over them.

    Args:
        found: What `pf.sweep` returned.
        against: `"l0"`, `"n_features"` or `"size"`.

    Raises:
        SettingError: `against` is something else.
        MissingExtraError: plotly is not installed.
    """
    if against not in _AXES:
        raise SettingError(
            f"against={against!r} is unknown. Accepted: {', '.join(map(repr, _AXES))}; nearest: {nearest(against, _AXES)}."
        )
    go = plotly()
    figure = go.Figure()
    lines = _lines(found.rows, against)
    varied = [name for name in _NAMES if len({getattr(row.setting, name) for row in found.rows}) > 1]
    for points, colour in zip(lines, COLOURS * len(lines), strict=False):
        name = _name(points[0], against, varied)
        figure.add_trace(_fits(points, against, name, colour))
        figure.add_trace(_control(points, against, name, colour))
    place = found.recommendation.place
    if place is not None:
        figure.add_trace(_star(found.rows[place], against))
    title = "Reconstruction error of a sweep: lines are fits, dashes their strongest control"
    laid_out(figure, title, _AXES[against], "reconstruction error (1 predicts nothing)")
    ticks = sorted({_x(row, against) for row in found.rows})
    figure.update_xaxes(
        type="log", tickvals=ticks, ticktext=[f"{tick:,g}" if tick < 1e6 else f"{tick:.3g}" for tick in ticks]
    )
    return figure.update_yaxes(rangemode="tozero")


Points = list[list[Any]]
"""The points of a line, each the rows of one setting."""


def _x(row: SweepRow, against: str) -> float:
    return row.size if against == "size" else getattr(row.setting, against)


def _lines(rows: Sequence[SweepRow], against: str) -> list[Points]:
    """The sweep's rows by line, which share all but the axis, and then by point."""

    def line(row: SweepRow) -> tuple:
        n_features, rank, l0, _ = row.setting
        return (n_features, rank) if against == "l0" else (l0, rank)

    def point(row: SweepRow) -> float:
        return _x(row, against)

    ordered = sorted(rows, key=lambda row: (line(row), point(row)))
    return [[list(rows) for _, rows in groupby(on_line, key=point)] for _, on_line in groupby(ordered, key=line)]


def _name(rows: Sequence[SweepRow], against: str, varied: Sequence[str]) -> str:
    on_axis = "n_features" if against == "size" else against
    setting = rows[0].setting
    parts = [_NAMES[name].format(getattr(setting, name)) for name in varied if name != on_axis]
    return ", ".join(parts) or "fits"


def _fits(points: Points, against: str, name: str, colour: str) -> Any:
    marker = {"size": 9, "symbol": [_symbol(rows) for rows in points]}
    return plotly().Scatter(
        x=[_x(rows[0], against) for rows in points],
        y=[fmean(row.error for row in rows) for rows in points],
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": colour, "width": 3},
        marker=marker,
        text=[_hover(rows) for rows in points],
        hovertemplate="%{text}<extra></extra>",
    )


def _control(points: Points, against: str, name: str, colour: str) -> Any:
    return plotly().Scatter(
        x=[_x(rows[0], against) for rows in points],
        y=[fmean(row.controls[row.control] for row in rows) for rows in points],
        name=f"{name}: control",
        legendgroup=name,
        showlegend=False,
        mode="lines",
        line={"color": colour, "width": 1.5, "dash": "dash"},
        hovertemplate="strongest control: %{y:.3f}<extra></extra>",
    )


def _symbol(rows: Sequence[SweepRow]) -> str:
    if not all(row.is_eligible for row in rows):
        return "x"
    return "circle-open" if any(row.flags for row in rows) else "circle"


def _hover(rows: Sequence[SweepRow]) -> str:
    lines = []
    for row in rows:
        controls = ", ".join(f"{name} {error:.3f}" for name, error in row.controls.items())
        lines.append(f"{row.setting}: {row.error:.3f}<br>{controls}" + "".join(f"<br>{flag}" for flag in row.flags))
    return "<br>".join(lines)


def _star(row: SweepRow, against: str) -> Any:
    return plotly().Scatter(
        x=[_x(row, against)],
        y=[row.error],
        name="recommended",
        mode="markers",
        marker={"symbol": "star-open", "size": 20, "color": GREYS[0], "line": {"width": 2}},
        hoverinfo="skip",
    )
