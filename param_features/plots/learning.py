"""Traces of the chains behind a learning coefficient: whether they have settled, and on what."""

from typing import TYPE_CHECKING

import torch

from param_features.development import LearningCoefficient
from param_features.machine import public
from param_features.plots.figures import COLOURS, GREYS, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go


@public
def learning_coefficient(found: LearningCoefficient) -> "go.Figure":
    """Draw every chain's running estimate nβ (L − L(w₀)) over its steps, that of each step faint; the burn-in is grey.

    A chain's line is the mean over the window of a twentieth of the steps that ends there. Chains that have settled run
    level and among each other after the burn-in; dashed is the estimate.

    Args:
        found: What `pf.development.learning_coefficient` returned; with `max_r_hat=float("inf")` also chains that it would
            refuse.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    go = plotly()
    values = found.n_beta * (found.losses - found.start)
    steps = list(range(values.shape[1]))
    window = max(1, len(steps) // 20)
    figure = go.Figure()
    for chain, row in enumerate(values):
        colour = COLOURS[chain % len(COLOURS)]
        padded = torch.cat([row[:1].expand(window - 1), row])
        smooth = padded.unfold(0, window, 1).mean(1)
        figure.add_trace(_line(steps, row, f"chain {chain}, each step", color=colour, width=0.5, opacity=0.25))
        figure.add_trace(_line(steps, smooth, f"chain {chain}: {float(found.of_chains[chain]):.2f}", color=colour, width=2))
    figure.add_vrect(0, found.n_burn_in, fillcolor=GREYS[2], opacity=0.25, line_width=0, annotation_text="burn-in")
    figure.add_hline(found.mean, line={"color": GREYS[0], "dash": "dash"})
    spread = f" ± {found.std:.2f}, R-hat {found.r_hat:.3f}" if len(found.of_chains) > 1 else " of one chain"
    title = f"Learning coefficient {found.mean:.2f}{spread}, d/2 = {found.d / 2:g}"
    return laid_out(figure, title, "step", "nβ (L − L(w₀))")


def _line(x: list[int], y: torch.Tensor, name: str, *, color: str, width: float, opacity: float = 1.0):
    return plotly().Scatter(
        x=x, y=y.tolist(), name=name, mode="lines", line={"color": color, "width": width}, opacity=opacity,
        showlegend=opacity == 1.0, hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>",
    )  # fmt: skip
