"""What all figures share: plotly itself, the colours, the layout."""

import importlib
from typing import TYPE_CHECKING, Any

from param_features.errors import MissingExtraError

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE = "#2b6cb0"
GREYS = ("#4a4a4a", "#8a8a8a", "#b5b5b5")
COLOURS = (BLUE, "#c05621", "#2f855a", "#805ad5", "#b83280", "#0987a0")
"""Colours of several fits, in turn."""
SIGNED = ((0, "rgb(180,20,20)"), (0.5, "white"), (1, "rgb(20,60,180)"))
"""Red is negative, blue positive, as in the views."""


def plotly(module: str = "graph_objects") -> Any:
    """Import a module of plotly.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    try:
        return importlib.import_module(f"plotly.{module}")
    except ImportError as error:
        raise MissingExtraError(
            'Plots need plotly, which cannot be imported. pip install "param_features[plots]" brings it.'
        ) from error


def laid_out(figure: "go.Figure", title: str, x: str, y: str) -> "go.Figure":
    """Give the figure its title, its axes' names and a plain look, and return it."""
    figure.update_layout(
        title={"text": title, "font": {"size": 16}, "x": 0.02},
        template="plotly_white",
        width=820,
        height=480,
        margin={"l": 70, "r": 30, "t": 70, "b": 60},
    )
    return figure.update_xaxes(title_text=x, automargin=True).update_yaxes(title_text=y, automargin=True)
