"""The query × key table as a picture, beside that of random directions."""

from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from param_features.circuits import QueryKey
from param_features.machine import public
from param_features.plots.figures import SIGNED, laid_out, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go


@public
def query_key(table: QueryKey, *, head: int | None = None, distance: int | None = None, least: float = 0.05) -> "go.Figure":
    """Draw the scores of pairs in one head at one distance, beside those of random directions in the same colours.

    Features are in order of the share of their weight that lies in that head, most at the top and left.

    Args:
        table: What `pf.circuits.query_key` returned.
        head: A query head; that of the strongest pair by default.
        distance: Positions by which the query comes after the key; that of the strongest pair by default.
        least: Features are drawn whose share in the head is at least this part of the largest share there; 0 draws all.

    Raises:
        SettingError: There is no such head, or the distance is not in the table.
        MissingExtraError: plotly is not installed.
    """
    go, best = plotly(), table.top(1, head=head, distance=distance)[0]
    place = table.distance_place(best.distance)
    queries = _in_order(table.query_heads[:, best.head], least)
    keys = _in_order(table.key_heads[:, best.head // table.attention.n_sharing], least)
    shown = [("features", table)] + ([("random directions", table.control)] if table.control is not None else [])
    figure = plotly("subplots").make_subplots(
        rows=1, cols=len(shown), subplot_titles=[name for name, _ in shown], horizontal_spacing=0.08
    )
    where = "at any distance" if table.attention.rotary is None else f"at distance {best.distance}"
    of = f"{len(queries)} query × {len(keys)} key features"
    laid_out(figure, f"{of} of {table.layer} in head {best.head}, {where}", "key feature", "query feature")
    tables = [source.score[queries][:, keys, best.head, place] for _, source in shown]
    bound = max(float(scores.abs().max()) for scores in tables) or 1.0
    for column, scores in enumerate(tables, 1):
        cells = _cells(scores, queries, keys)
        figure.add_trace(go.Heatmap(cells, zmin=-bound, zmax=bound, showscale=column == 1), row=1, col=column)
    figure.update_xaxes(type="category").update_yaxes(type="category", autorange="reversed")
    return figure.update_layout(width=1150 if len(shown) > 1 else 640, height=600)


def _in_order(shares: Float[Tensor, " feature"], least: float) -> list[int]:
    order = shares.argsort(descending=True)
    return order[shares[order] >= least * shares.max()].tolist()


def _cells(scores: Float[Tensor, "query key"], queries: list[int], keys: list[int]) -> dict:
    return {
        "z": scores.tolist(),
        "x": [str(key) for key in keys],
        "y": [str(query) for query in queries],
        "colorscale": [list(stop) for stop in SIGNED],
        "colorbar": {"title": {"text": "score"}},
        "hovertemplate": "query feature %{y}, key feature %{x}: %{z:.4f}<extra></extra>",
    }
