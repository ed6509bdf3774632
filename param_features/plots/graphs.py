"""A circuit as a picture: columns in the order of the forward pass, joined by edges."""

import html
import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from param_features.circuits import Circuit, Edge, GraphLayout, Node, lay_out, spread
from param_features.machine import public
from param_features.measure import visible
from param_features.plots.figures import GREYS, plotly

if TYPE_CHECKING:
    import plotly.graph_objects as go

POSITIVE, NEGATIVE = "rgb(20,60,180)", "rgb(180,20,20)"
"""The views' blue and red, which colour-blind readers tell apart as well."""
SHAPES = {"parameter": "circle", "sae": "diamond", "error": "square", "output": "star"}
KINDS = {"parameter": "parameter feature", "sae": "SAE feature", "error": "what is left out", "output": "the metric"}
_COLUMN, _ROW = 165, 62
_SMALLEST, _LARGEST, _OUTPUT = 9, 28, 22
_THINNEST, _THICKEST, _WIDTHS = 0.6, 6.0, 8
_BEND = 16
_LETTERS = 22


@public
def circuit(circuit: Circuit, *, n_edges: int | None = None, n_examples: int = 3) -> "go.Figure":
    """Draw the graph, to look at with the mouse: hovering shows a node's label, effect and examples, or an edge's weight.

    Columns are places in the forward pass. A node's size is its |effect|, its colour the sign, its shape the kind; an edge's
    width is its |weight|, its colour the sign. Widths come in eight steps.

    Args:
        circuit: Found by `pf.circuit`, or loaded.
        n_edges: How many edges, strongest first; all by default.
        n_examples: Texts shown with a node.

    Raises:
        ExportError: The circuit's parts do not fit together.
        MissingExtraError: plotly or networkx is not installed.
    """
    go, grid = plotly(), lay_out(circuit)
    figure = go.Figure()
    edges = sorted(circuit.edges, key=lambda edge: abs(edge.weight))
    for trace in _edges(edges[len(edges) - n_edges :] if n_edges is not None and n_edges < len(edges) else edges, grid):
        figure.add_trace(trace)
    for kind in SHAPES:
        nodes = [node for node in circuit.nodes if node.kind == kind]
        if nodes:
            figure.add_trace(_nodes(kind, nodes, grid, _largest_effect(circuit), n_examples))
            figure.add_trace(_key(KINDS[kind], SHAPES[kind], GREYS[0 if kind == "output" else 1]))
    figure.add_trace(_key("raises it", "line-ew-open", POSITIVE))
    figure.add_trace(_key("lowers it", "line-ew-open", NEGATIVE))
    _name_nodes(figure, circuit, grid)
    return _framed(figure, circuit, grid)


def _largest_effect(circuit: Circuit) -> float:
    return max((abs(node.effect) for node in circuit.nodes if node.kind != "output"), default=0.0) or 1.0


def _edges(edges: list[Edge], grid: GraphLayout) -> Iterator["go.Scatter"]:
    """A trace for each width and sign, thin ones first; then the points in their middles that take the mouse."""
    go, most = plotly(), max((abs(edge.weight) for edge in edges), default=0.0) or 1.0
    sorts = Counter((math.ceil(_WIDTHS * abs(edge.weight) / most), edge.weight < 0) for edge in edges)
    for step, is_negative in sorted(sorts):
        chosen = [e for e in edges if (math.ceil(_WIDTHS * abs(e.weight) / most), e.weight < 0) == (step, is_negative)]
        x, y = _joined([_curve(grid.places[edge.source], grid.places[edge.target]) for edge in chosen])
        width = _THINNEST + (_THICKEST - _THINNEST) * step / _WIDTHS
        line = {"width": width, "color": NEGATIVE if is_negative else POSITIVE}
        yield go.Scatter(
            x=x, y=y, mode="lines", line=line, opacity=0.18 + 0.5 * step / _WIDTHS, hoverinfo="skip", showlegend=False,
            name=f"edges, {'negative' if is_negative else 'positive'}",
        )  # fmt: skip
    middles = [_curve(grid.places[edge.source], grid.places[edge.target])[_BEND // 2] for edge in edges]
    yield go.Scatter(
        x=[x for x, _ in middles], y=[y for _, y in middles], mode="markers", marker={"size": 9, "opacity": 0},
        hovertext=[f"{_safe(e.source)} → {_safe(e.target)}<br>weight {e.weight:+.4g}" for e in edges],
        hovertemplate="%{hovertext}<extra></extra>", showlegend=False, name="weights",
    )  # fmt: skip


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """The points of an edge's line, which leaves and arrives level."""
    shares = [step / _BEND for step in range(_BEND + 1)]
    (x0, y0), (x1, y1) = start, end
    return [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t * t * (3 - 2 * t)) for t in shares]


def _joined(lines: list[list[tuple[float, float]]]) -> tuple[list[float | None], list[float | None]]:
    points: list[tuple[float | None, float | None]] = [point for line in lines for point in (*line, (None, None))]
    return [x for x, _ in points], [y for _, y in points]


def _nodes(kind: str, nodes: list[Node], grid: GraphLayout, most: float, n_examples: int) -> "go.Scatter":
    sizes = [_SMALLEST + (_LARGEST - _SMALLEST) * math.sqrt(abs(node.effect) / most) for node in nodes]
    colours = [NEGATIVE if node.effect < 0 else POSITIVE for node in nodes]
    marker: dict[str, Any] = {"symbol": SHAPES[kind], "size": sizes, "color": colours, "opacity": 1}
    marker["line"] = {"width": 1.5, "color": "white"}
    if kind == "output":
        marker |= {"size": _OUTPUT, "color": GREYS[0]}
    return plotly().Scatter(
        x=[grid.places[node.name][0] for node in nodes],
        y=[grid.places[node.name][1] for node in nodes],
        mode="markers",
        marker=marker,
        name=KINDS[kind],
        showlegend=False,
        hovertext=[_hover(node, n_examples) for node in nodes],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _key(name: str, symbol: str, colour: str) -> "go.Scatter":
    """An entry of the legend."""
    marker = {
        "symbol": symbol,
        "size": 12,
        "color": colour,
        "line": {"width": 3 if "open" in symbol else 0, "color": colour},
    }
    return plotly().Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name, showlegend=True)


def _hover(node: Node, n_examples: int) -> str:
    lines = [f"<b>{_safe(node.name)}</b>", KINDS[node.kind]]
    lines += [_safe(node.label)] if node.label else []
    lines += [f"effect {node.effect:+.4g}, ± {spread(node):.2g} over prompts"] if node.effects else []
    for example in node.examples[:n_examples]:
        at = example.position
        before, after = "".join(example.tokens[max(0, at - 10) : at]), "".join(example.tokens[at + 1 : at + 5])
        lines.append(f"{example.strengths[at]:+.3g}  {_safe(before)}<b>[{_safe(example.tokens[at])}]</b>{_safe(after)}")
    return "<br>".join(lines)


def _name_nodes(figure: "go.Figure", circuit: Circuit, grid: GraphLayout) -> None:
    """Write each node's number and label below it, each cut to its column."""
    for node in circuit.nodes:
        x, y = grid.places[node.name]
        lines = [_safe(_cut(text)) for text in (_short(node), node.label) if text]
        figure.add_annotation(
            x=x, y=y, text="<br>".join(lines), showarrow=False, yanchor="top", yshift=-13, font={"size": 10},
            bgcolor="rgba(255,255,255,0.72)", borderpad=0, align="center",
        )  # fmt: skip


def _short(node: Node) -> str:
    """The node's name without the group, which the column names."""
    return node.name.removeprefix(f"{node.group}/")


def _cut(text: str) -> str:
    return text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…"


def _safe(text: str) -> str:
    """The text for plotly, which reads tags, so that none is read."""
    return html.escape(visible(text), quote=False)


def _framed(figure: "go.Figure", circuit: Circuit, grid: GraphLayout) -> "go.Figure":
    n_columns, n_rows = len(grid.columns), grid.n_rows
    title = f"{visible(circuit.metric)}: {len(circuit.nodes)} nodes, {len(circuit.edges)} edges"
    names = ["<br>".join(_broken(group) for group in groups) for groups in grid.columns]
    n_lines = max((name.count("<br>") + 1 for name in names), default=1)
    half = max(1, n_rows) / 2
    figure.update_layout(
        title={"text": _safe(title), "font": {"size": 16}, "x": 0.02, "y": 1, "yanchor": "top", "pad": {"t": 18}},
        template="plotly_white",
        width=max(760, 60 + _COLUMN * n_columns),
        height=148 + _ROW * max(2, n_rows) + 15 * n_lines,
        margin={"l": 20, "r": 20, "t": 92, "b": 26 + 15 * n_lines},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
        hovermode="closest",
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(
        tickvals=list(range(n_columns)), ticktext=names, range=[-0.5, max(1, n_columns) - 0.5], showgrid=False,
        zeroline=False, tickangle=0, tickfont={"size": 11},
    )  # fmt: skip
    return figure.update_yaxes(visible=False, range=[-half - 0.35, half + 0.05])


def _broken(group: str) -> str:
    """The group's name in lines that fit a column, broken at dots."""
    lines = [""]
    for part in visible(group).replace(".", ".\0").split("\0"):
        lines = [*lines[:-1], lines[-1] + part] if len(lines[-1] + part) <= _LETTERS or not lines[-1] else [*lines, part]
    return "<br>".join(html.escape(_cut(line), quote=False) for line in lines)
