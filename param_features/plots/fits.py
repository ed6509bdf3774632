"""Plots of a whole fit: how often features are kept, and the error against l0."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.machine import public
from param_features.measure import L0Curve, curve_of, densities_of
from param_features.plots.figures import BLUE, COLOURS, GREYS, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CONTROLS = {
    "control_pca": "principal directions",
    "control_random": "random directions",
    "control_svd_w": "singular directions of W",
}


@public
def density(features: Fitted, tokens: Any = None, *, inputs: Any = None, n_bins: int = 30) -> "go.Figure":
    """Draw a histogram over features of the share of samples that keep each, on a logarithmic axis.

    Features that no sample keeps are counted in the title: they have no place on that axis.

    Args:
        features: A fit with its model.
        tokens: Where to count; the held-out sequences of the fit by default.
        inputs: Instead of tokens, for modules that take none.
        n_bins: Bars, over whole powers of ten.

    Raises:
        NotBoundError: The features were loaded without a model.
        SettingError: `n_bins` is below 1.
        MissingExtraError: plotly is not installed.
    """
    go = plotly()
    shares = densities_of(features, features.inputs_or_examples(tokens, inputs))
    alive = shares[shares > 0].log10()
    high = float(alive.max().ceil()) if len(alive) else 0.0
    low = min(float(alive.min().floor()), high - 1) if len(alive) else -1.0
    if n_bins < 1:
        raise SettingError(f"n_bins={n_bins} must be 1 or more.")
    counts, edges = torch.histogram(alive, n_bins, range=(low, high))
    left, right = edges[:-1], edges[1:]
    bars = go.Bar(
        x=((left + right) / 2).tolist(),
        y=counts.tolist(),
        width=(right - left).tolist(),
        marker_color=BLUE,
        customdata=torch.stack([10**left, 10**right], 1).tolist(),
        hovertemplate="%{y:.0f} features kept by %{customdata[0]:.2%} to %{customdata[1]:.2%} of the samples<extra></extra>",
    )
    n_dead = int((shares == 0).sum())
    title = f"Density of {len(shares)} features: {n_dead} kept by no sample"
    figure = laid_out(go.Figure(bars), title, "share of samples that keep the feature", "features")
    ticks = list(range(int(low), int(high) + 1))
    return figure.update_xaxes(tickvals=ticks, ticktext=[f"{10.0**tick:.{max(0, -tick - 2)}%}" for tick in ticks])


@public
def pareto(
    features: Fitted | Sequence[Fitted],
    tokens: Any = None,
    *,
    inputs: Any = None,
    l0s: Sequence[float] | None = None,
    n_samples: int = 8192,
    seed: int = 0,
) -> "go.Figure":
    """Draw the error against the features kept per sample, of one fit or several, beside the first one's controls.

    Cost: `features.errors_by_l0` of each.

    Args:
        features: A fit with its model, or several.
        tokens: Where to measure; each fit's held-out sequences by default.
        inputs: Instead of tokens, for modules that take none.
        l0s: Features kept per sample; see `features.errors_by_l0`.
        n_samples: About how many samples to measure on at most.
        seed: Of positions, references and the random control.

    Raises:
        SettingError: No fit is given.
        NotBoundError: Features were loaded without a model.
        MissingExtraError: plotly is not installed.
    """
    go = plotly()
    fits = [features] if isinstance(features, Fitted) else list(features)
    if not fits:
        raise SettingError("features is empty. Give a fit, or a list of fits.")
    curves = [curve_of(fit, fit.inputs_or_examples(tokens, inputs), l0s=l0s, n_samples=n_samples, seed=seed) for fit in fits]
    names = ["features"] if len(fits) == 1 else [f"fit {index}: {fit.n_features} features" for index, fit in enumerate(fits)]
    figure = go.Figure()
    for name, curve, colour in zip(names, curves, COLOURS * len(fits), strict=False):
        figure.add_trace(_line(curve, "reconstruction_error", name, {"color": colour, "width": 3}))
    for (key, name), colour, dash in zip(_CONTROLS.items(), GREYS, ("solid", "dash", "dot"), strict=True):
        figure.add_trace(_line(curves[0], key, name, {"color": colour, "width": 1.5, "dash": dash}))
    figure.add_trace(_as_decomposed(fits[0]))
    title = f"Reconstruction error against l0, {curves[0].n_samples:,} samples"
    laid_out(figure, title, "l0: features kept per sample, mean", "reconstruction error (1 predicts nothing)")
    ticks = sorted({l0 for curve in curves for l0 in curve.l0s})
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])
    return figure.update_yaxes(rangemode="tozero")


def _as_decomposed(features: Fitted) -> Any:
    """A point for the control in `metrics`: the principal directions of all training samples, more than the line's."""
    marker = {"color": GREYS[0], "symbol": "x", "size": 9}
    l0, error = features.metrics["l0"], features.metrics["control_pca"]
    return plotly().Scatter(x=[l0], y=[error], name="the same of all training samples", mode="markers", marker=marker)


def _line(curve: L0Curve, key: str, name: str, line: dict[str, Any]) -> Any:
    hover = f"{name}: %{{y:.3f}} at l0 %{{x:g}}<extra></extra>"
    return plotly().Scatter(
        x=list(curve.l0s), y=list(curve.errors[key]), name=name, mode="lines+markers", line=line, hovertemplate=hover
    )
