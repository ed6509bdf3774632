"""Plots of one feature: its activations, and where its weight lies."""

import math
from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError, UnknownParameterError
from param_features.fitted import Fitted
from param_features.machine import public
from param_features.measure import weight_by_head
from param_features.plots.figures import BLUE, GREYS, SIGNED, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_MOST_CELLS = 128


@public
def activations(features: Fitted, feature: int, tokens: Any = None, *, inputs: Any = None, n_bins: int = 60) -> "go.Figure":
    """Draw a histogram of a feature's activations, those that are kept marked; counts are on a logarithmic axis.

    Args:
        features: A fit with its model.
        feature: Which one.
        tokens: Where to count; the held-out sequences of the fit by default.
        inputs: Instead of tokens, for modules that take none.
        n_bins: Bars, as many below 0 as above.

    Raises:
        FeatureCountError: There is no such feature.
        SettingError: `n_bins` is below 1.
        NotBoundError: The features were loaded without a model.
        MissingExtraError: plotly is not installed.
    """
    go = plotly()
    features.check_feature(feature)
    readings = features.readings_on(features.inputs_or_examples(tokens, inputs)).real()
    acts, codes = readings.activations[:, feature], readings.codes[:, feature]
    is_kept = codes != 0
    bound = float(acts.abs().max()) or 1.0
    if n_bins < 1:
        raise SettingError(f"n_bins={n_bins} must be 1 or more.")
    n_bins += n_bins % 2
    figure = go.Figure()
    for name, values, colour in (("not kept", acts[~is_kept], GREYS[2]), ("kept", acts[is_kept], BLUE)):
        counts, edges = torch.histogram(values.double(), n_bins, range=(-bound, bound))
        middles = ((edges[:-1] + edges[1:]) / 2).tolist()
        figure.add_trace(go.Bar(x=middles, y=counts.tolist(), name=name, marker_color=colour, width=2 * bound / n_bins))
    name = features.name_of(feature).capitalize()
    title = f"{name}: activations at {len(acts):,} samples, {int(is_kept.sum()):,} of which keep it"
    laid_out(figure, title, features.measured, "samples")
    return figure.update_layout(barmode="overlay").update_yaxes(type="log")


@public
def direction(features: Fitted, feature: int, *, param: str | None = None) -> "go.Figure":
    """Draw where a feature's weight lies: its share in each parameter and head, and one parameter's part of it as a matrix.

    Matrices above 128 × 128 are shown in blocks, each by its largest entry in size.

    Args:
        features: A fit; no model is needed.
        feature: Which one.
        param: Whose matrix to show; by default the parameter with most of the weight.

    Raises:
        FeatureCountError: There is no such feature.
        UnknownParameterError: `param` was not decomposed.
        MissingExtraError: plotly is not installed.
    """
    tensors = features.direction(feature)
    shares = weight_by_head(tensors, {name: record.fold for name, record in features.params.items()})
    if param is not None and param not in shares:
        raise UnknownParameterError(f"{param!r} was not decomposed. Parameters here: {', '.join(shares)}.")
    chosen = param or max(shares, key=lambda name: float(shares[name].sum()))
    left, right = features.params[chosen].fold.split("->")
    matrix = rearrange(tensors[chosen], f"{left} -> {right}")
    has_parts = len(shares) > 1 or len(shares[chosen]) > 1
    columns = 2 if has_parts else 1
    titles = (["share of the squared norm"] if has_parts else []) + [f"{chosen}, d_out × d_in"]
    figure = plotly("subplots").make_subplots(rows=1, cols=columns, subplot_titles=titles, horizontal_spacing=0.14)
    laid_out(figure, f"{features.name_of(feature).capitalize()}: where its direction lies", "", "")
    if has_parts:
        _add_shares(figure, shares)
    _add_matrix(figure, matrix, columns)
    return figure.update_layout(width=1000 if has_parts else 620)


def _add_shares(figure: "go.Figure", shares: dict[str, Float[Tensor, " head"]]) -> None:
    """Draw parameters as rows, heads as columns; a parameter without heads has its share under "whole"."""
    n_heads = max(len(row) for row in shares.values())
    has_whole = any(len(row) == 1 for row in shares.values())
    heads = [*(["whole"] if has_whole else []), *([str(head) for head in range(n_heads)] if n_heads > 1 else [])]
    rows = []
    for row in shares.values():
        values = [*row.tolist(), *[None] * (n_heads - len(row))]
        rows.append([values[0], *[None] * (len(heads) - 1)] if len(row) == 1 else [*[None] * has_whole, *values])
    text = [["" if value is None else f"{value:.0%}" for value in row] for row in rows]
    cells = plotly().Heatmap(
        z=rows,
        x=heads,
        y=list(shares),
        text=text,
        texttemplate="%{text}",
        zmin=0,
        colorscale=[[0, "white"], [1, BLUE]],
        showscale=False,
        hovertemplate="%{y}, %{x}: %{z:.1%}<extra></extra>",
    )
    figure.add_trace(cells, row=1, col=1)
    figure.update_xaxes(title_text="head" if n_heads > 1 else "", type="category", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=1, col=1)


def _add_matrix(figure: "go.Figure", matrix: Float[Tensor, "d_out d_in"], column: int) -> None:
    steps = [math.ceil(d / _MOST_CELLS) for d in matrix.shape]
    shown = _blocks(matrix.cpu(), *steps)
    bound = float(shown.abs().max()) or 1.0
    cells = plotly().Heatmap(
        z=shown.tolist(),
        x0=0,
        dx=steps[1],
        y0=0,
        dy=steps[0],
        zmin=-bound,
        zmax=bound,
        colorscale=[list(stop) for stop in SIGNED],
        colorbar={"title": "entry"},
        hovertemplate="d_out %{y}, d_in %{x}: %{z:.4f}<extra></extra>",
    )
    figure.add_trace(cells, row=1, col=column)
    figure.update_xaxes(title_text="d_in", row=1, col=column)
    figure.update_yaxes(title_text="d_out", autorange="reversed", row=1, col=column)


def _blocks(matrix: Float[Tensor, "d_out d_in"], height: int, width: int) -> Float[Tensor, "rows columns"]:
    """The matrix in blocks, of each the entry of largest size; the last blocks may be smaller."""
    d_out, d_in = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, -d_in % width, 0, -d_out % height))
    blocks = rearrange(padded, "(r h) (c w) -> r c (h w)", h=height, w=width)
    return blocks.gather(2, blocks.abs().argmax(2, keepdim=True))[..., 0]
