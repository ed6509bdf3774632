"""A circuit's nodes as a table with the texts on which their features are strong."""

import html
from dataclasses import dataclass

from param_features.circuits.graph import CircuitGraph, Node, NodeExample
from param_features.circuits.tables import KINDS, ranked, score_line, score_rows, spread
from param_features.circuits.verdict import circuit_verdict
from param_features.measure import visible
from param_features.views import Page, TokenRow, check_finite

_BEFORE, _AFTER = 24, 9
_TABLE = 'style="border-collapse:collapse;text-align:left"'
_CELL = 'style="vertical-align:top;text-align:left;padding:3px 8px;border-top:1px solid #8885"'


@dataclass(frozen=True)
class NodeRows:
    """One node's line of the table, with the texts on which its feature is strong.

    Attributes:
        node: Whose.
        rows: Its examples' texts; colours are on a scale of its own.
    """

    node: Node
    rows: tuple[TokenRow, ...]

    @property
    def bound(self) -> float:
        """The |strength| that gets the full colour."""
        return max((row.bound for row in self.rows), default=1.0)

    def text(self) -> str:
        """Write coloured text for a terminal."""
        head = f"{visible(self.node.name)}  {self.node.effect:+.4g}  {visible(self.node.label)}".rstrip()
        return "\n".join([head, *(f"    {row.text(self.bound)}" for row in self.rows)])

    def static(self) -> str:
        """Write the table's row as safe HTML."""
        node = self.node
        cells = (
            html.escape(visible(node.name)),
            KINDS[node.kind],
            f"{node.effect:+.4g} ± {spread(node):.2g}",
            html.escape(visible(node.label)),
        )
        texts = "".join(row.static(self.bound) for row in self.rows)
        return f"<tr>{''.join(f'<td {_CELL}>{cell}</td>' for cell in (*cells, texts))}</tr>"


@dataclass(frozen=True, repr=False)
class CircuitView(Page):
    """A circuit's summary, and the table of its nodes, as a page.

    Attributes:
        about: Lines above the table.
        nodes: The table, strongest first.
    """

    about: tuple[str, ...]
    nodes: tuple[NodeRows, ...]

    def __str__(self) -> str:
        """Write coloured text for a terminal."""
        return "\n".join([self.title, *self.about, *(node.text() for node in self.nodes)])

    @property
    def blocks(self) -> str:
        """The page's parts as safe HTML that needs no script."""
        head = "".join(
            f"<th {_CELL}>{name}</th>" for name in ("node", "kind", "effect ± spread", "label", "where it is strong")
        )
        about = "<br>".join(html.escape(line) for line in self.about)
        return f"<div>{about}</div><table {_TABLE}><tr>{head}</tr>{''.join(node.static() for node in self.nodes)}</table>"

    def _repr_html_(self) -> str:
        """Write the table for a notebook; it brings no script, since it needs none."""
        return self._body


def circuit_view(circuit: CircuitGraph, n: int | None = None, *, n_examples: int = 3) -> CircuitView:
    """Make the view of a circuit: the nodes of largest effect with their examples."""
    nodes = tuple(NodeRows(node, tuple(map(_row, node.examples[:n_examples]))) for node in ranked(circuit)[:n])
    check_finite(value for node in nodes for row in node.rows for value in row.values)
    counts = f"{len(circuit.nodes)} nodes, {len(circuit.edges)} edges, {len(circuit.prompts)} prompts"
    return CircuitView(
        f"Circuit of {visible(circuit.metric)}",
        (counts, circuit_verdict(circuit), *map(score_line, score_rows(circuit.scores))),
        nodes,
    )


def _row(example: NodeExample) -> TokenRow:
    start, stop = max(0, example.position - _BEFORE), example.position + _AFTER
    title = f"{example.strengths[example.position]:+.4f} «{visible(example.tokens[example.position])}»"
    return TokenRow(title, example.tokens[start:stop], example.strengths[start:stop], example.position - start)
