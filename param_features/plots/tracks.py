"""Features through training: curves over steps, each beside its controls, phase changes and home marked."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from param_features.development import Track
from param_features.errors import SettingError, nearest
from param_features.machine import public
from param_features.plots.figures import BLUE, COLOURS, GREYS, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_AXES = {
    "impact": "impact",
    "density": "density",
    "curvature": "curvature",
    "match": "match, |cosine|",
    "error": "reconstruction error",
    "share": "share of the change",
    "norm": "‖change‖",
}
_CONTROLS = {
    "control_pca": "principal directions",
    "control_random": "random directions",
    "control_svd_w": "singular directions of W",
    "refit": "fitted there",
}
_HEIGHT, _EVEN = 260, 10
_FAINT = "rgba(120,120,120,0.25)"


@public
def track(found: Track, of: str | Sequence[str] = ("impact", "error", "share"), *, n_top: int = 5) -> "go.Figure":
    """Draw curves over training, a panel each: features of the largest impact in colour, the others faint, the mean black.

    A dotted line marks where a curve's mean begins a new phase (`track.change_points`), a dashed one the checkpoint that the
    features were fitted at, red ground where they are stale. Steps that lie unevenly, such as 1, 10, 100, are drawn as
    evenly spaced; curvature has a logarithmic axis.

    Args:
        found: What `pf.track` returned.
        of: One or several of `"impact"`, `"density"`, `"curvature"`, `"match"`, `"error"`, `"share"` and `"norm"`.
        n_top: How many features are in colour.

    Raises:
        SettingError: A curve is unknown, or there is none of it.
        MissingExtraError: plotly or ruptures is not installed.
    """
    panels = [of] if isinstance(of, str) else list(of)
    wrong = next((panel for panel in panels if panel not in _AXES), None)
    if wrong is not None or not panels:
        known = ", ".join(map(repr, _AXES))
        raise SettingError(
            f"of={wrong!r} is unknown. Accepted: one or more of {known}; nearest: {nearest(str(wrong), _AXES)}."
        )
    x, ticks = _places(found)
    figure = plotly("subplots").make_subplots(rows=len(panels), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, panel in enumerate(panels, start=1):
        for trace in _lines(found, panel, x, n_top):
            figure.add_trace(trace, row=row, col=1)
        for step in found.change_points(panel):
            figure.add_vline(
                x[found.steps.index(step)], line={"color": GREYS[0], "width": 1.5, "dash": "dot"}, row=row, col=1
            )
    laid_out(figure, "Features through training", "", "")
    for row, panel in enumerate(panels, start=1):
        scale = {"type": "log", "dtick": "D2"} if panel == "curvature" else {"rangemode": "tozero"}
        figure.update_yaxes(title_text=_AXES[panel], row=row, col=1, **scale)
    _mark_home(figure, found, x)
    is_even = ticks is None
    figure.update_xaxes(**({} if is_even else {"tickvals": x, "ticktext": ticks}))
    figure.update_xaxes(title_text="training step" if is_even else "training step, evenly spaced", row=len(panels), col=1)
    legend = "dotted: a phase begins · dashed: fitted here · red: stale, hardly better than random directions"
    figure.add_annotation(text=legend, x=0, y=1, xref="paper", yref="paper", yanchor="bottom", yshift=8, showarrow=False)
    return figure.update_layout(height=130 + _HEIGHT * len(panels))


def _places(result: Track) -> tuple[list[float], list[str] | None]:
    """The places at which checkpoints are drawn, and their names where that is not at their steps."""
    gaps = [after - before for before, after in zip(result.steps, result.steps[1:], strict=False)]
    if not gaps or max(gaps) <= _EVEN * min(gaps):
        return list(result.steps), None
    return list(range(len(result))), [f"{step:,}" for step in result.steps]


def _lines(result: Track, panel: str, x: list[float], n_top: int) -> list[Any]:
    curve = result.curve(panel).tolist()
    if panel == "error":
        controls = [
            _line(x, result.errors[name].tolist(), _CONTROLS[name], panel, dash="dash", color=colour)
            for name, colour in zip(_CONTROLS, (*GREYS, COLOURS[1]), strict=True)
            if name in result.errors
        ]
        return [_line(x, curve, "these features", panel, color=BLUE, width=3), *controls]
    if panel == "share":
        random = _line(x, result.share_random.tolist(), "random directions", panel, dash="dash", color=GREYS[1])
        return [_line(x, curve, "in the features' span", panel, color=BLUE, width=3), random]
    if panel == "norm":
        return [_line(x, curve, "‖change‖", panel, color=BLUE, width=3)]
    return [*_of_features(result, panel, x, n_top), _line(x, curve, "mean", panel, color="black", width=3)]


def _of_features(result: Track, panel: str, x: list[float], n_top: int) -> list[Any]:
    """Every feature's line, those of the largest impact last, on top; a feature has one colour in all panels."""
    order = result.impact.amax(0).argsort(descending=True, stable=True).tolist()
    colours = dict(zip(order[:n_top], COLOURS, strict=False))
    lines = []
    for rank, feature in reversed(list(enumerate(order))):
        style = {"color": colours.get(feature, _FAINT), "width": 2 if feature in colours else 1}
        name, is_named = f"feature {feature}", feature in colours
        lines.append(_line(x, result.curve(panel, feature).tolist(), name, panel, is_named=is_named, rank=rank, **style))
    return lines


def _line(
    x: list[float], y: list[float], name: str, panel: str, *, is_named: bool = True, rank: int = 1000, **style: Any
) -> Any:
    return plotly().Scatter(
        x=x,
        y=y,
        name=name,
        legendgroup=panel,
        legendgrouptitle={"text": panel},
        legendrank=rank,
        showlegend=is_named,
        mode="lines+markers" if is_named else "lines",
        line={"width": 1.5} | style,
        marker={"size": 5},
        hovertemplate=f"{name}: %{{y:.3g}}<extra></extra>",
    )


def _mark_home(figure: "go.Figure", result: Track, x: list[float]) -> None:
    """Draw a dashed line at home in every panel, and red ground around stale checkpoints."""
    for place, is_stale in enumerate(result.is_stale.tolist()):
        if is_stale:
            left, right = x[max(place - 1, 0)], x[min(place + 1, len(x) - 1)]
            figure.add_vrect((left + x[place]) / 2, (x[place] + right) / 2, fillcolor="red", opacity=0.06, line_width=0)
    if result.home is not None:
        figure.add_vline(x[result.home], line={"color": BLUE, "width": 1.5, "dash": "dash"})
