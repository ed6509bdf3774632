"""The picture of a circuit as a plotly figure."""

import dataclasses
import math

import pytest

import param_features as pf
from param_features.circuits import Circuit, Edge, Node
from param_features.circuits.export_graph import lay_out
from param_features.errors import ExportError
from param_features.plots.graphs import NEGATIVE, POSITIVE
from tests.circuits_made import example, large_circuit, small_circuit

pytest.importorskip("plotly")

SHAPES = {"parameter": "circle", "sae": "diamond", "error": "square", "output": "star"}
KINDS = {"parameter feature": "parameter", "SAE feature": "sae", "what is left out": "error", "the metric": "output"}


def node_traces(figure) -> dict:
    """By kind, the traces that draw nodes."""
    return {KINDS[trace.name]: trace for trace in figure.data if trace.name in KINDS and trace.showlegend is False}


def strings(value) -> list[str]:
    """Every text in a figure."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [value] if isinstance(value, str) else [text for part in inside for text in strings(part)]


def drawn_lines(figure) -> list:
    return [trace for trace in figure.data if trace.mode == "lines"]


@pytest.mark.parametrize("circuit", [small_circuit(), large_circuit()], ids=["12", "60"])
def test_nodes_have_their_place_shape_size_and_sign(circuit):
    traces, places = node_traces(pf.plot.circuit(circuit)), lay_out(circuit).places
    for kind, trace in traces.items():
        nodes = [node for node in circuit.nodes if node.kind == kind]
        assert list(zip(trace.x, trace.y, strict=True)) == [places[node.name] for node in nodes]
        assert trace.marker.symbol == SHAPES[kind]
        if kind == "output":
            continue
        most = max(abs(node.effect) for node in circuit.nodes if node.kind != "output")
        assert list(trace.marker.size) == pytest.approx([9 + 19 * math.sqrt(abs(node.effect) / most) for node in nodes])
        assert list(trace.marker.color) == [NEGATIVE if node.effect < 0 else POSITIVE for node in nodes]
    assert sum(len(trace.x) for trace in traces.values()) == len(circuit.nodes)


def test_edges_join_their_nodes_with_the_width_and_colour_of_their_weight():
    circuit = small_circuit()
    figure, places = pf.plot.circuit(circuit), lay_out(circuit).places
    most, found = max(abs(edge.weight) for edge in circuit.edges), {}
    for trace in drawn_lines(figure):
        ends = [place for place, x in enumerate(trace.x) if x is None]
        for start, stop in zip([0, *(end + 1 for end in ends[:-1])], ends, strict=True):
            line = (trace.x[start], trace.y[start]), (trace.x[stop - 1], trace.y[stop - 1])
            found[line] = trace.line
    assert len(found) == len(circuit.edges)
    for edge in circuit.edges:
        line = found[places[edge.source], places[edge.target]]
        assert line.color == (NEGATIVE if edge.weight < 0 else POSITIVE)
        assert line.width == pytest.approx(0.6 + 5.4 * math.ceil(8 * abs(edge.weight) / most) / 8)


def test_hovering_tells_label_effect_examples_and_weights():
    circuit = small_circuit()
    figure = pf.plot.circuit(circuit, n_examples=1)
    texts = "\n".join(text for trace in node_traces(figure).values() for text in trace.hovertext)
    for node in circuit.nodes:
        assert f"<b>{node.name}</b>" in texts
        assert node.label in texts
        if node.effects:
            assert f"effect {node.effect:+.4g}" in texts
    shown = circuit.nodes[0].examples[0]
    assert f"<b>[{shown.tokens[shown.position]}]</b>" in texts
    assert texts.count("<b>[") == sum(bool(node.examples) for node in circuit.nodes)
    (weights,) = [trace for trace in figure.data if trace.name == "weights"]
    assert sorted(weights.hovertext) == sorted(
        f"{edge.source} → {edge.target}<br>weight {edge.weight:+.4g}" for edge in circuit.edges
    )


def test_columns_are_named_and_the_weakest_edges_can_be_left_out():
    circuit = small_circuit()
    figure = pf.plot.circuit(circuit, n_edges=5)
    assert [text.replace("<br>", "") for text in figure.layout.xaxis.ticktext] == [
        "blocks.0.attn.W_K", "blocks.1.hook_resid_pre", "blocks.2.mlp.W_in", "metric",
    ]  # fmt: skip
    assert figure.layout.title.text == "logit(he) − logit(she): 12 nodes, 24 edges"
    (weights,) = [trace for trace in figure.data if trace.name == "weights"]
    best = sorted(circuit.edges, key=lambda edge: -abs(edge.weight))[:5]
    assert {text.partition("<br>")[0] for text in weights.hovertext} == {f"{edge.source} → {edge.target}" for edge in best}
    assert not drawn_lines(pf.plot.circuit(circuit, n_edges=0))


def test_names_are_shown_as_text():
    bad = "<a href='https://example.org'>x</a>&amp;"
    node = Node(bad, bad, "parameter", 0, (1.0,), 0, bad, (example(0, tokens=(bad,)),))
    other = dataclasses.replace(node, name="b", depth=1)
    figure = pf.plot.circuit(Circuit((node, other), (Edge(bad, "b", 1.0),), (("a",),), bad))
    found = [text for text in strings(figure.to_dict()) if "href" in text]
    assert len(found) == 8, "the title, two columns, two labels, two nodes and an edge under the mouse"
    for text in found:
        assert "<a" not in text
        assert "&lt;a" in text


def test_next_to_nothing_can_be_drawn_and_nonsense_cannot():
    assert pf.plot.circuit(Circuit((), (), (), "m")).layout.title.text == "m: 0 nodes, 0 edges"
    silent = Node("a", "a", "parameter", 0, (0.0,), 0)
    assert len(node_traces(pf.plot.circuit(Circuit((silent,), (), (("a",),), "m")))) == 1
    with pytest.raises(ExportError, match="2 nodes are called 'a'"):
        pf.plot.circuit(Circuit((silent, silent), (), (("a",),), "m"))


@pytest.mark.parametrize("circuit", [small_circuit(), large_circuit()], ids=["12", "60"])
def test_no_label_covers_another(circuit, tmp_path, page, traffic):
    path = pf.plot.save(pf.plot.circuit(circuit), tmp_path / "circuit.html")
    page.goto(path.as_uri())
    page.wait_for_selector(".annotation")
    measure = "all => all.map(e => e.getBoundingClientRect()).map(r => [r.left, r.top, r.right, r.bottom])"
    boxes = page.locator(".annotation-text, .xtick text").evaluate_all(measure)
    assert len(boxes) >= len(circuit.nodes)
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            assert min(right, other[2]) - max(left, other[0]) <= 0 or min(bottom, other[3]) - max(top, other[1]) <= 0
    assert traffic.requests == traffic.errors == []
