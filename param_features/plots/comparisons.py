"""Two sets of features side by side: how well each feature's nearest counterpart goes with it."""

from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import InputError
from param_features.machine import public
from param_features.measure import Match, correlation_table
from param_features.plots.figures import BLUE, GREYS, laid_out, plotly
from param_features.sae import Comparison

if TYPE_CHECKING:
    import plotly.graph_objects as go


@runtime_checkable
class Correlated(Protocol):
    """Any object that holds the correlations of two sets of features' activations.

    Attributes:
        correlation: Signed, of every pair.
    """

    correlation: Float[Tensor, "feature other"]


@public
def compare(
    ours: Match | Comparison | Correlated | Float[Tensor, "sample feature"],
    theirs: Float[Tensor, "own_sample other"] | None = None,
    *,
    names: tuple[str, str] = ("features", "others"),
    seed: int = 0,
) -> "go.Figure":
    """Draw how alike two sets of features are, best pair first, beside what chance gives.

    Args:
        ours: What `pf.match` returned: the pairs' |cosine|, beside the mean of random directions. What `pf.compare`
            returned: each parameter feature's best correlation with an SAE feature, beside that of random directions. Or an
            object with a matrix `correlation` [feature other], or activations: each feature's largest |correlation|.
        theirs: With activations: those of the others at the same samples. Chance is the same with their samples shuffled.
        names: What the two sets are called.
        seed: Seed of the shuffle.

    Raises:
        InputError: Activations of one set alone, or at different numbers of samples.
        MissingExtraError: plotly is not installed.
    """
    if isinstance(ours, Match):
        cosine = ours.cosine.abs().sort(descending=True).values
        chance = torch.full_like(cosine, ours.control_cosine)
        title = f"{len(ours)} pairs of {names[0]} and {names[1]}, one to one: mean |cosine| {ours.mean_cosine:.2f}"
        return _curves(cosine, chance, title, "|cosine| of the directions", "random directions, their mean")
    if isinstance(ours, Comparison):
        side = ours.of_features
        best, chance = (values[side.counted].sort(descending=True).values for values in (side.best, side.random))
        title = f"{len(side.shared)} of {len(best)} parameter features have a counterpart in the SAE"
        return _curves(best, chance, title, "largest correlation with an SAE feature", "random directions")
    best, chance = _best(ours, theirs, torch.Generator().manual_seed(seed))
    title = f"Each of {len(best)} {names[0]} with its nearest of the {names[1]}: mean |correlation| {float(best.mean()):.2f}"
    return _curves(best, chance, title, "largest |correlation| of activations", "the same, samples shuffled")


def _best(ours, theirs: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Each feature's largest |correlation|, falling, with the others and with those shuffled."""
    if theirs is None and isinstance(ours, Correlated):
        return _largest(ours.correlation), None
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor) or len(ours) != len(theirs):
        shapes = " and ".join(str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in (ours, theirs))
        raise InputError(
            f"Got {shapes}. Give what pf.match returned, an object with a matrix `correlation`, or two activation matrices "
            "[sample feature] and [sample other] at the same samples."
        )
    order = torch.randperm(len(theirs), generator=generator)
    return _largest(correlation_table(ours, theirs)), _largest(correlation_table(ours, theirs[order]))


def _largest(correlation: Float[Tensor, "feature other"]) -> Float[Tensor, " feature"]:
    return correlation.abs().max(1).values.sort(descending=True).values


def _curves(best: Tensor, chance: Tensor | None, title: str, y: str, control: str) -> "go.Figure":
    go = plotly()
    rank = list(range(1, len(best) + 1))
    line = {"color": BLUE, "width": 3}
    figure = go.Figure(go.Scatter(x=rank, y=best.tolist(), name="found", mode="lines", line=line))
    if chance is not None:
        line = {"color": GREYS[1], "width": 1.5, "dash": "dash"}
        figure.add_trace(go.Scatter(x=rank, y=chance.tolist(), name=control, mode="lines", line=line))
    laid_out(figure, title, "features, best first", y)
    return cast("go.Figure", figure.update_yaxes(range=[0, 1.02]).update_layout(showlegend=True))
