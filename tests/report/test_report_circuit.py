"""The report's section about a circuit, in a real browser with the network blocked."""

import dataclasses

import pytest

from param_features.circuits import Circuit, Node
from param_features.errors import ExportError
from param_features.problem import read_inputs
from param_features.report import contents, write_report
from param_features.report.circuits import circuit_section
from param_features.report.samples import Vocabulary, digits
from tests.circuits_made import example, large_circuit, small_circuit

SMALL = small_circuit()
HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><b>bold</b>&amp;"


@pytest.fixture(scope="module")
def found(tiny_features, tiny_tokens):
    """A report without its circuit, whose own parameter is the circuit's first group."""
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens[:10], None)
    return contents(tiny_features, inputs, tiny_features.errors_by_l0(tiny_tokens[:10], n_samples=50), n_examples=2)


@pytest.fixture
def open_with(found, page, tmp_path):
    def opened(circuit: Circuit):
        vocabulary = Vocabulary()
        for token in found["vocabulary"]:
            vocabulary.number(token)
        section = circuit_section(circuit, vocabulary, {"blocks.0.attn.W_K": None}, 6)
        path = write_report(tmp_path / "r.html", "t", found | {"circuit": section, "vocabulary": vocabulary.strings})
        page.goto(path.as_uri())
        page.wait_for_selector("#errors .main-svg")
        return page

    return opened


def test_the_section_has_every_number():
    vocabulary = Vocabulary()
    section = circuit_section(SMALL, vocabulary, {"blocks.0.attn.W_K": None}, 6)
    assert [node["name"] for node in section["nodes"]] == [node.name for node in SMALL.nodes]
    assert [node["effect"] for node in section["nodes"][:-1]] == [digits(node.effect) for node in SMALL.nodes[:-1]]
    assert section["nodes"][-1]["effect"] is None
    names = [node.name for node in SMALL.nodes]
    assert section["edges"] == [
        [names.index(edge.source), names.index(edge.target), digits(edge.weight)] for edge in SMALL.edges
    ]
    shown, first = section["nodes"][0]["examples"][0], SMALL.nodes[0].examples[0]
    assert [vocabulary.strings[token] for token in shown["tokens"]] == list(first.tokens)
    assert shown["at"] == first.position
    assert section["scores"][0] == {"name": "faithfulness", "value": 0.86, "controls": {"random": 0.12, "matched": 0.2}}


@pytest.mark.parametrize(
    ("changes", "link"),
    [
        ({}, 3),
        ({"feature": 6}, None),
        ({"feature": None}, None),
        ({"kind": "sae"}, None),
        ({"group": "blocks.1.attn.W_K"}, None),
        ({"group": "blocks.0.attn.W_K, blocks.0.attn.W_Q"}, None),
    ],
)
def test_only_features_of_the_report_are_linked(changes, link):
    node = dataclasses.replace(SMALL.nodes[0], **changes)
    section = circuit_section(Circuit((node,), (), SMALL.prompts, "m"), Vocabulary(), {"blocks.0.attn.W_K": None}, 6)
    assert section["nodes"][0]["link"] == link


def test_a_group_of_several_parameters_is_known_in_any_order():
    node = dataclasses.replace(SMALL.nodes[0], group="b.W, a.W")
    section = circuit_section(Circuit((node,), (), SMALL.prompts, "m"), Vocabulary(), {"a.W": None, "b.W": None}, 6)
    assert section["nodes"][0]["link"] == 3


def test_a_circuit_that_does_not_hold_together_is_refused():
    twice = Circuit((SMALL.nodes[0], SMALL.nodes[0]), (), SMALL.prompts, "m")
    with pytest.raises(ExportError, match="2 nodes are called"):
        circuit_section(twice, Vocabulary(), {}, 6)


def test_the_report_takes_a_circuit(tiny_features, tiny_tokens, tmp_path, page, traffic):
    path = tiny_features.report(tmp_path / "r.html", tokens=tiny_tokens, n_rows=5, circuit=SMALL)
    page.goto(path.as_uri())
    page.wait_for_selector("#circuit-picture .node")
    assert page.locator("#circuit-link").is_visible()
    assert page.locator("#circuit-picture .node").count() == len(SMALL.nodes)
    assert traffic.requests == traffic.errors == []


def test_without_a_circuit_there_is_no_such_section(found, page, tmp_path):
    page.goto(write_report(tmp_path / "r.html", "t", found).as_uri())
    page.wait_for_selector("#errors .main-svg")
    assert page.locator("#circuit").is_hidden()
    assert page.locator("#circuit-link").is_hidden()


def test_the_picture_has_every_node_and_edge_by_size_and_sign(open_with):
    page = open_with(SMALL)
    assert page.locator("#circuit-picture .edge").count() == len(SMALL.edges)
    for sign, wanted in (("up", 1), ("down", -1)):
        assert page.locator(f"#circuit-picture .edge.{sign}").count() == sum(e.weight * wanted > 0 for e in SMALL.edges)
        inner = [node for node in SMALL.nodes if node.kind != "output"]
        assert page.locator(f"#circuit-picture .node.{sign}").count() == sum(n.effect * wanted > 0 for n in inner)
    widths = page.locator("#circuit-picture .edge").evaluate_all(
        "all => all.map(e => [+e.dataset.source, +e.dataset.target, +e.getAttribute('stroke-width')])"
    )
    most = max(abs(edge.weight) for edge in SMALL.edges)
    names = [node.name for node in SMALL.nodes]
    weights = {(names.index(edge.source), names.index(edge.target)): edge.weight for edge in SMALL.edges}
    for source, target, width in widths:
        assert width == pytest.approx(0.6 + 5.4 * abs(weights[source, target]) / most, abs=0.02)
    title = page.inner_text("#circuit-title")
    assert (
        title == "12 nodes and 24 edges for logit(he) − logit(she) on 4 prompts. Whether they explain it was not measured."
    )


def test_scores_and_nodes_stand_in_tables(open_with):
    page = open_with(SMALL)
    rows = page.locator("#circuit-scores tbody tr").all_inner_texts()
    assert rows[0].split("\t") == ["faithfulness", "0.86", "random 0.12, matched 0.2"]
    best = sorted(SMALL.nodes[:-1], key=lambda node: -abs(node.effect))
    assert page.locator("#circuit-table tbody td:first-child button").all_inner_texts() == [node.name for node in best]
    assert page.locator("#circuit-table .token.at").count() == sum(bool(node.examples) for node in best)


def test_a_click_shows_the_node_and_a_link_leads_to_its_feature(open_with):
    page = open_with(SMALL)
    assert page.inner_text("#circuit-node h3") == max(SMALL.nodes, key=lambda node: abs(node.effect)).name
    page.click("#circuit-picture .node[data-node='0'] circle")
    first = SMALL.nodes[0]
    assert page.inner_text("#circuit-node h3") == first.name
    panel = page.inner_text("#circuit-node")
    assert first.label in panel
    assert f"{first.effect:+.3g}" in panel
    tokens = page.locator("#circuit-node .example").first.locator(".token").all_inner_texts()
    assert tokens == list(first.examples[0].tokens)
    page.click("#circuit-node a")
    assert page.inner_text("#feature h2") == "Feature 3"


def test_the_keyboard_reaches_nodes(open_with):
    page = open_with(SMALL)
    page.focus("#circuit-picture .node[data-node='1']")
    page.keyboard.press("Enter")
    assert page.inner_text("#circuit-node h3") == SMALL.nodes[1].name


def test_the_mouse_over_a_node_leaves_its_edges_alone(open_with):
    page = open_with(SMALL)
    page.hover("#circuit-picture .node[data-node='0'] circle")
    bright = page.locator("#circuit-picture .edge:not(.faded)").count()
    assert bright == sum(SMALL.nodes[0].name in (edge.source, edge.target) for edge in SMALL.edges)
    page.mouse.move(0, 0)
    assert page.locator("#circuit-picture .faded").count() == 0


@pytest.mark.parametrize(("circuit", "width"), [(SMALL, 390), (large_circuit(), 1300)], ids=["12", "60"])
def test_no_label_covers_another_and_the_page_stays_in_its_width(circuit, width, open_with):
    page = open_with(circuit)
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    measure = "all => all.map(e => e.getBoundingClientRect()).map(r => [r.left, r.top, r.right, r.bottom])"
    boxes = page.locator("#circuit-picture text, #circuit-picture .node > :not(text, title)").evaluate_all(measure)
    assert len(boxes) >= 2 * len(circuit.nodes)
    for number, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:number]:
            assert min(right, other[2]) - max(left, other[0]) <= 0 or min(bottom, other[3]) - max(top, other[1]) <= 0


def test_hostile_names_run_nothing(open_with, traffic):
    node = Node(HOSTILE, HOSTILE, "parameter", 0, (1.0,), 0, HOSTILE, (example(1, tokens=(HOSTILE,) * 3),) * 3)
    other = dataclasses.replace(node, name=f"2{HOSTILE}", group=f"2{HOSTILE}", kind="error", depth=1)
    edge = dataclasses.replace(SMALL.edges[0], source=node.name, target=other.name)
    circuit = Circuit(
        (node, other), (edge,), ((HOSTILE,),), HOSTILE, {HOSTILE: HOSTILE}, {HOSTILE: 0.5, f"{HOSTILE}_x": 0.1}
    )
    page = open_with(circuit)
    assert page.inner_text("#circuit-node h3") == HOSTILE
    assert HOSTILE in page.inner_text("#circuit-title")
    assert set(page.locator("#circuit .token").all_inner_texts()) == {HOSTILE}
    page.locator("#circuit-table summary").first.click()
    page.hover("#circuit-picture .node rect")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#circuit img, #circuit b, #circuit script").count() == 0
    assert traffic.requests == traffic.errors == []


def test_a_circuit_of_nothing_is_shown(open_with, traffic):
    page = open_with(Circuit((), (), (), "m"))
    assert (
        page.inner_text("#circuit-title")
        == "0 nodes and 0 edges for m on 0 prompts. Whether they explain it was not measured."
    )
    assert traffic.errors == []
