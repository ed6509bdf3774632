"""Dimensionality over sparsity, with the plateaus of regular geometries."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.machine import public
from param_features.plots.figures import COLOURS, GREYS, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

PLATEAUS = {1.0: "1: alone", 1 / 2: "1/2: antipodal pair", 2 / 5: "2/5: pentagon"}


@public
def dimensionality(
    found: Mapping[str, Float[Tensor, "probability vector"]],
    probabilities: Sequence[float],
    *,
    plateaus: Mapping[float, str] = PLATEAUS,
) -> "go.Figure":
    """Draw every vector's dimensionality as a point, over how rare features are, and lines of regular geometries.

    Args:
        found: By name, such as "columns of W": what `pf.development.dimensionality` gives, for each probability in turn.
        probabilities: How often a feature is in an input, one for each row. The axis is 1 / probability, which is
            1 / (1 − sparsity).
        plateaus: Heights of lines, and their names.

    Raises:
        SettingError: There is nothing to draw, or not one row for each probability.
        MissingExtraError: plotly is not installed.
    """
    wrong = [name for name, values in found.items() if values.dim() != 2 or len(values) != len(probabilities)]
    if wrong or not found:
        raise SettingError(
            f"found has {'nothing' if not found else f'{wrong[0]!r} of shape {tuple(found[wrong[0]].shape)}'}, for "
            f"{len(probabilities)} probabilities. Give [probability, vector] for each name."
        )
    figure = plotly().Figure()
    for place, (name, values) in enumerate(found.items()):
        figure.add_trace(_points(name, values, probabilities, place, len(found)))
    for height, name in plateaus.items():
        line = {"color": GREYS[2], "width": 1, "dash": "dash"}
        figure.add_hline(height, line=line, annotation_text=name, annotation_position="top right")
    laid_out(figure, "Dimensionality over sparsity", "1 / probability of a feature", "dimensionality ‖v‖² / Σ (v̂·w)²")
    ticks = [1 / chance for chance in probabilities]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:.3g}" for tick in ticks])
    figure.update_xaxes(range=[log10(min(ticks)) - 0.1, log10(max(ticks)) + 0.55])  # room for the lines' names
    return figure.update_yaxes(range=[-0.03, 1.1])


def _points(name: str, values: Tensor, probabilities: Sequence[float], place: int, n: int) -> Any:
    """One set's points, beside those of the other sets, so that none hides another."""
    shift = 1.05 ** (place - (n - 1) / 2)
    return plotly().Scatter(
        x=[shift / chance for chance in probabilities for _ in range(values.shape[1])],
        y=values.flatten().tolist(),
        name=name,
        mode="markers",
        marker={"color": COLOURS[place % len(COLOURS)], "size": 7, "opacity": 0.6},
        hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
    )
