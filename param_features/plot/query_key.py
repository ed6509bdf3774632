"""The query × key table as a picture, beside that of random directions."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from param_features.circuits import QueryKey
from param_features.plot.figures import SIGNED, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go


def query_key(table: QueryKey, *, head: int | None = None, distance: int | None = None) -> "go.Figure":
    """Scores of all pairs in one head at one distance; the same of random directions beside it, in the same colours.

    Features are in order of the share of their weight that lies in that head, most at the top and left: pairs that live
    elsewhere are pale because they have little there.

    Args:
        table: What `pf.query_key` returned.
        head: A query head; that of the strongest pair by default.
        distance: Positions by which the query comes after the key; that of the strongest pair by default.

    Raises:
        SettingError: There is no such head, or the distance is not in the table.
        MissingExtraError: plotly is not installed.
    """
    go, best = plotly(), table.top(1, head=head, distance=distance)[0]
    distance, place = best.distance if distance is None else distance, table.distance_place(best.distance)
    queries = table.query_heads[:, best.head].argsort(descending=True).tolist()
    keys = table.key_heads[:, best.head // table.attention.n_sharing].argsort(descending=True).tolist()
    shown = [("features", table)] + ([("random directions", table.control)] if table.control is not None else [])
    figure = plotly("subplots").make_subplots(
        rows=1, cols=len(shown), subplot_titles=[name for name, _ in shown], horizontal_spacing=0.08
    )
    place_name = "any distance" if table.attention.rotary is None else f"distance {distance}"
    title = f"Query × key of {table.layer}, head {best.head}, {place_name}"
    laid_out(figure, title, "key feature", "query feature")
    bound = float(table.score[..., best.head, place].abs().max()) or 1.0
    for column, (_, one) in enumerate(shown, 1):
        cells = _cells(one.score[queries][:, keys, best.head, place], queries, keys)
        figure.add_trace(go.Heatmap(cells, zmin=-bound, zmax=bound, showscale=column == 1), row=1, col=column)
    return figure.update_yaxes(autorange="reversed").update_layout(width=1150 if len(shown) > 1 else 640, height=600)


def _cells(scores: Float[Tensor, "query key"], queries: list[int], keys: list[int]) -> dict:
    return {
        "z": scores.tolist(),
        "x": [str(key) for key in keys],
        "y": [str(query) for query in queries],
        "colorscale": [list(stop) for stop in SIGNED],
        "colorbar": {"title": {"text": "score"}},
        "hovertemplate": "query feature %{y}, key feature %{x}: %{z:.4f}<extra></extra>",
    }
