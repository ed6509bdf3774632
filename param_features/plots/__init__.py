"""Plots of features as plotly figures: `pf.plot.density(features).show()`, or `pf.plot.save(figure, "density.png")`.

plotly is imported when a plot is drawn: `pip install "param_features[plots]"`.
"""

from param_features.plots.comparisons import compare
from param_features.plots.dimensions import dimensionality
from param_features.plots.features import activations, direction
from param_features.plots.fits import density, pareto
from param_features.plots.graphs import circuit
from param_features.plots.learning import learning_coefficient
from param_features.plots.queries import query_key
from param_features.plots.saving import save
from param_features.plots.steps import steering
from param_features.plots.sweeps import sweep
from param_features.plots.tracks import track

__all__ = [
    "activations",
    "circuit",
    "compare",
    "density",
    "dimensionality",
    "direction",
    "learning_coefficient",
    "pareto",
    "query_key",
    "save",
    "steering",
    "sweep",
    "track",
]
