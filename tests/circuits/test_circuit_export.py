"""Circuits as files, networkx graphs, Neuronpedia graphs and text."""

import copy
import dataclasses
import hashlib
import json
import math
import re
from collections import Counter

import pytest

from param_features.circuits import Circuit, Edge, Node, NodeExample
from param_features.circuits.export_graph import lay_out
from param_features.circuits.tables import score_rows
from param_features.errors import ExportError, MissingExtraError, NonFiniteError, SettingError, StoreError
from tests.circuits_made import PROMPT, large_circuit, small_circuit

SMALL = small_circuit()
FIRST = SMALL.nodes[0]


def changed(node: Node = FIRST, **changes) -> Circuit:
    """The small circuit with one node changed."""
    nodes = tuple(dataclasses.replace(old, **changes) if old is node else old for old in SMALL.nodes)
    return dataclasses.replace(SMALL, nodes=nodes)


def rewritten(path, change) -> None:
    """A file whose content was changed by someone who also set the checksum right."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    body = {
        key: value for key, value in content.items() if key not in ("format", "format_version", "library_version", "sha256")
    }
    content["sha256"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "circuit", [SMALL, large_circuit(), Circuit((), (), (), "nothing")], ids=["small", "large", "empty"]
)
def test_what_is_saved_is_loaded(circuit, tmp_path):
    path = circuit.save(tmp_path / "deep" / "circuit.json")
    loaded = Circuit.load(path)
    for field in dataclasses.fields(Circuit):
        assert getattr(loaded, field.name) == getattr(circuit, field.name)
    assert [entry.name for entry in path.parent.iterdir()] == ["circuit.json"]


def test_a_file_is_plain_data_with_its_format_and_version(tmp_path):
    content = json.loads(SMALL.save(tmp_path / "c.json").read_text(encoding="utf-8"))
    assert (content["format"], content["format_version"]) == ("param_features circuit", 1)
    assert content["nodes"][0]["name"] == FIRST.name
    assert content["edges"][0] == dataclasses.asdict(SMALL.edges[0])


HOSTILE = (
    (lambda c: c["edges"][0].update(source="metrik"), "ends at 'metrik', which is no node; nearest: 'metric'"),
    (lambda c: c["edges"][0].update(source=["a"]), r"ends at \['a'\], which is no node"),
    (lambda c: c["edges"][0].update(source=c["edges"][0]["target"]), "does not lead forward"),
    (lambda c: c["edges"].append(c["edges"][0]), "2 edges lead from"),
    (lambda c: c["edges"][0].update(weight="1"), "has weight '1', not a finite number"),
    (lambda c: c["nodes"][1].update(name=c["nodes"][0]["name"]), f"2 nodes are called '{FIRST.name}'"),
    (lambda c: c["nodes"][0].update(kind="neuron"), "is of kind 'neuron'; accepted: parameter, sae, error, output"),
    (lambda c: c["nodes"][0].update(depth=-1), "has depth -1"),
    (lambda c: c["nodes"][0].update(depth=True), "has depth True"),
    (lambda c: c["nodes"][0].update(feature=1.5), "has feature 1.5"),
    (lambda c: c["nodes"][0]["effects"].pop(), "has 3 effects, but there are 4 prompts"),
    (lambda c: c["nodes"][0].update(effects=5), "effects is a int, not a list"),
    (lambda c: c["nodes"][0].update(label=["a"]), "a group or a label that is no text"),
    (lambda c: c["nodes"][0]["examples"][0].update(position=99), "position 99 among 11 tokens"),
    (lambda c: c["nodes"][0]["examples"][0]["tokens"].pop(), "10 tokens and 11 strengths"),
    (lambda c: c["nodes"][0]["examples"][0]["tokens"].__setitem__(0, None), "tokens that are no text"),
    (lambda c: c["nodes"][0].update(colour="red"), r"node 0 lacks nothing and has the unknown \['colour'\]"),
    (lambda c: c["nodes"][0].pop("group"), r"node 0 lacks \['group'\]"),
    (lambda c: c["nodes"].__setitem__(0, "node"), "node 0 is a str, not a dict"),
    (lambda c: c.pop("scores"), r"the circuit lacks \['scores'\]"),
    (lambda c: c["scores"].update(faithfulness=True), "score 'faithfulness' is True, not a finite number"),
    (lambda c: c["prompts"][0].append(3), "prompt 0 holds tokens that are no text"),
    (lambda c: c.update(metric=3), "its metric is 3, which is no text"),
    (lambda c: c["nodes"][0].update(name={"a": 1}), "has no name"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "message"), HOSTILE, ids=[message[:40] for _, message in HOSTILE])
def test_a_file_whose_parts_do_not_fit_is_refused_by_name(change, message, tmp_path):
    path = SMALL.save(tmp_path / "c.json")
    rewritten(path, change)
    with pytest.raises(StoreError, match=message):
        Circuit.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1, 2]", "does not describe a circuit: its 'format' is not 'param_features circuit'"),
        (b'{"format": "param_features"}', "does not describe a circuit"),
        (b'{"format": "param_features circuit", "format_version": 2, "library_version": "9"}', "install that version"),
        (b'{"format": "param_features circuit", "format_version": 1, "metric": NaN}', "holds NaN"),
    ],
)
def test_a_foreign_file_is_refused(content, message, tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        Circuit.load(path)


def test_a_damaged_edited_or_missing_file_is_refused(tmp_path):
    path = SMALL.save(tmp_path / "c.json")
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(StoreError, match="cut short"):
        Circuit.load(path)
    path.write_text(text.replace("0.86", "0.96"), encoding="utf-8")
    with pytest.raises(StoreError, match="does not match its own checksum"):
        Circuit.load(path)
    with pytest.raises(StoreError, match="No such file"):
        Circuit.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("circuit", "message"),
    [
        (changed(effects=(math.nan, 0.0, 0.0, 0.0)), f"node '{FIRST.name}' has an effect that is not a finite number"),
        (dataclasses.replace(SMALL, record={"model": object()}), r"its record holds \['model'\] = <object"),
        (dataclasses.replace(SMALL, record={"x": {"y": math.inf}}), r"its record holds \['x'\]\['y'\] = inf"),
        (dataclasses.replace(SMALL, scores={"faithfulness": math.nan}), "score 'faithfulness' is nan"),
        (dataclasses.replace(SMALL, edges=(Edge("a", FIRST.name, 1.0),)), "the edge from 'a' to .* ends at 'a'"),
    ],
)
def test_a_circuit_that_does_not_hold_together_is_not_written(circuit, message, tmp_path):
    for write in (circuit.save, lambda path: circuit.to_neuronpedia(path, slug="a", scan="b")):
        with pytest.raises(ExportError, match=message):
            write(tmp_path / "c.json")
    with pytest.raises(ExportError, match=message):
        circuit.to_networkx()
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = SMALL.save(tmp_path / "c.json")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        large_circuit().save(path)
    assert path.read_bytes() == before


def test_networkx_has_every_field():
    graph = SMALL.to_networkx()
    assert list(graph.nodes) == [node.name for node in SMALL.nodes]
    for node in SMALL.nodes:
        expected = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        assert graph.nodes[node.name] | {"name": node.name} == expected | {"effect": node.effect}
    assert {(source, target): data for source, target, data in graph.edges(data=True)} == {
        (edge.source, edge.target): {"weight": edge.weight} for edge in SMALL.edges
    }
    assert graph.graph["metric"] == SMALL.metric
    assert graph.graph["scores"] == dict(SMALL.scores)


def test_a_missing_networkx_is_named(monkeypatch):
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ImportError(name)))
    with pytest.raises(MissingExtraError, match=r'pip install "param_features\[plots\]"'):
        SMALL.to_networkx()


@pytest.mark.parametrize("circuit", [SMALL, large_circuit(), large_circuit(200)], ids=["12", "60", "200"])
def test_a_layout_has_a_column_for_each_depth_and_no_two_nodes_in_one_place(circuit):
    found = lay_out(circuit)
    depths = sorted({node.depth for node in circuit.nodes})
    assert {node.name: found.places[node.name][0] for node in circuit.nodes} == {
        node.name: depths.index(node.depth) for node in circuit.nodes
    }
    for column, groups in enumerate(found.columns):
        inside = [node for node in circuit.nodes if node.depth == depths[column]]
        assert groups == tuple(dict.fromkeys(node.group for node in inside))
        rows = sorted(found.places[node.name][1] for node in inside)
        assert rows == [row - (len(rows) - 1) / 2 for row in range(len(rows))]
        errors = [found.places[node.name][1] for node in inside if node.kind == "error"]
        assert errors in ([], [rows[0]])
    assert lay_out(circuit) == found


def test_a_layout_has_fewer_crossings_than_the_given_order():
    circuit = large_circuit(120)

    def n_crossings(places) -> int:
        ends = [(places[edge.source], places[edge.target]) for edge in circuit.edges]
        pairs = [(a, b) for i, a in enumerate(ends) for b in ends[:i] if a[0][0] == b[0][0] and a[1][0] == b[1][0]]
        return sum((a[0][1] - b[0][1]) * (a[1][1] - b[1][1]) < 0 for a, b in pairs)

    found = lay_out(circuit).places
    taken: dict[float, int] = {}
    given = {}
    for node in circuit.nodes:
        column = found[node.name][0]
        given[node.name] = (column, taken.setdefault(column, 0))
        taken[column] += 1
    assert n_crossings(found) < 0.8 * n_crossings(given)


def test_layouts_of_next_to_nothing():
    lone = Node("metric", "metric", "output", 5, ())
    assert lay_out(Circuit((), (), (), "m")).places == {}
    assert lay_out(Circuit((lone,), (), (), "m")).places == {"metric": (0, 0)}
    two = Circuit((dataclasses.replace(lone, name="a"), dataclasses.replace(lone, name="b")), (), (), "m")
    assert sorted(lay_out(two).places.values()) == [(0, -0.5), (0, 0.5)]


TEXT, NUMBER, LIST = {"type": "string"}, {"type": "number"}, {"type": "array"}


def _object(**properties) -> dict:
    return {"type": "object", "properties": properties}


GRAPH = _object(
    metadata=_object(slug=TEXT, scan=TEXT, prompt=TEXT, prompt_tokens=LIST | {"items": TEXT}, node_threshold=NUMBER)
    | {"required": ["slug", "scan", "prompt_tokens", "prompt"]},
    qParams=_object(pinnedIds=LIST | {"items": TEXT}, supernodes=LIST, linkType=TEXT, clickedId=TEXT, sg_pos=TEXT),
    nodes=LIST
    | {
        "items": _object(
            node_id=TEXT, feature={"type": ["integer", "null"]}, layer={"type": ["string", "integer"]}, feature_type=TEXT,
            ctx_idx={"type": "integer"}, jsNodeId=TEXT, clerp=TEXT, influence={"type": ["number", "null"]},
            activation={"type": ["number", "null"]},
        )
        | {"required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"]}
    },
    links=LIST | {"items": _object(source=TEXT, target=TEXT, weight=NUMBER) | {"required": ["source", "target", "weight"]}},
) | {"required": ["metadata", "qParams", "nodes", "links"]}  # fmt: skip
"""What Neuronpedia's schema, version 1.0.0, asks of an attribution graph."""


OPTIONAL = {"type": ["number", "null"]}
WHOLE = {"type": "integer"}
TRACER = _object(
    metadata=_object(
        slug=TEXT, scan=TEXT, transcoder_list=LIST | {"items": TEXT}, prompt_tokens=LIST | {"items": TEXT}, prompt=TEXT,
        node_threshold=OPTIONAL, schema_version={"type": ["integer", "null"]},
    )
    | {"required": ["slug", "scan", "transcoder_list", "prompt_tokens", "prompt"]},
    qParams=_object(
        pinnedIds=LIST | {"items": TEXT}, supernodes=LIST | {"items": LIST | {"items": TEXT}}, linkType=TEXT, clickedId=TEXT,
        sg_pos=TEXT,
    )
    | {"required": ["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"]},
    nodes=LIST
    | {
        "items": _object(
            node_id=TEXT, feature=WHOLE, layer=TEXT, ctx_idx=WHOLE, feature_type=TEXT, token_prob=NUMBER,
            is_target_logit={"type": "boolean"}, run_idx=WHOLE, reverse_ctx_idx=WHOLE, jsNodeId=TEXT, clerp=TEXT,
            influence=OPTIONAL, activation=OPTIONAL,
        )
        | {"required": ["node_id", "feature", "layer", "ctx_idx", "feature_type"]}
    },
    links=LIST | {"items": {"type": "object"}},
) | {"required": ["metadata", "qParams", "nodes", "links"]}  # fmt: skip
"""What circuit-tracer 0.5 reads: `frontend/graph_models.py`, field by field."""


def assert_the_readers_take(graph: dict) -> None:
    """Both readers' schemas, and what their code does with a graph before it draws it."""
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(graph, GRAPH)
    jsonschema.validate(graph, TRACER)
    meta, nodes = graph["metadata"], graph["nodes"]
    shown_on = Counter((node["layer"], node["feature"], node["ctx_idx"]) for node in nodes)
    assert max(shown_on.values()) <= len(meta["prompt_tokens"]) * 2 / 3, "both viewers delete what is on most tokens"
    assert all(isinstance(meta["transcoder_list"][int(node["layer"])], str) for node in nodes), "where scan is custom-…"
    assert meta["prompt"] == "".join(meta["prompt_tokens"])
    assert not re.search(r"[^a-zA-Z0-9_.-]", meta["scan"] + meta["slug"])
    ids = [node["node_id"] for node in nodes]
    assert len(set(ids)) == len(ids)
    assert not any("," in name for name in ids), "pinned nodes are joined by commas in the address"
    assert set(graph["qParams"]["pinnedIds"]) <= set(ids)
    assert {end for link in graph["links"] for end in (link["source"], link["target"])} <= set(ids)
    assert max(int(node["layer"]) for node in nodes if node["feature_type"] != "logit"), "the site throws 'No layer found'"
    shown = [(node["layer"], node["feature"], node["ctx_idx"]) for node in nodes]
    assert len(set(shown)) == len(shown), "the site merges nodes that agree in all three"
    for node in nodes:
        assert 0 <= node["ctx_idx"] < len(meta["prompt_tokens"])
        if node["feature_type"] == "logit":
            assert float(node["clerp"].split("(p=")[1].split(")")[0]) == node["token_prob"]
    assert {link["weight"] for link in graph["links"] if not math.isfinite(link["weight"])} == set()


def exported(circuit: Circuit, tmp_path, **changes) -> dict:
    path = circuit.to_neuronpedia(tmp_path / "graph.json", **{"slug": "he-she", "scan": "gpt2-small"} | changes)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("circuit", [SMALL, large_circuit(), large_circuit(200)], ids=["12", "60", "200"])
def test_neuronpedia_takes_the_graph(circuit, tmp_path):
    graph = exported(circuit, tmp_path)
    assert_the_readers_take(graph)
    names = {entry["node_id"]: entry["name"] for entry in graph["nodes"]}
    assert list(names.values()) == [node.name for node in circuit.nodes]
    assert [(names[link["source"]], names[link["target"]], link["weight"]) for link in graph["links"]] == [
        (edge.source, edge.target, edge.weight) for edge in circuit.edges
    ]
    assert graph["metadata"]["schema_version"] == 1
    assert len(graph["qParams"]["pinnedIds"]) == min(len(circuit.nodes), 101)


def test_neuronpedia_gets_layers_from_names_the_last_position_and_the_prompt_asked_for(tmp_path):
    graph = exported(SMALL, tmp_path, prompt=1)
    layers = {entry["name"]: int(entry["layer"]) for entry in graph["nodes"]}
    assert {name: layer for name, layer in layers.items() if name != "metric"} == {
        node.name: int(node.group.split(".")[1]) for node in SMALL.nodes if node.kind != "output"
    }
    assert layers["metric"] == 3
    assert graph["metadata"]["prompt_tokens"] == list(PROMPT[:6])
    assert {entry["ctx_idx"] for entry in graph["nodes"]} == {5}
    kinds = {node.kind: entry["feature_type"] for node, entry in zip(SMALL.nodes, graph["nodes"], strict=True)}
    assert kinds == {
        "parameter": "parameter feature", "sae": "sae feature", "error": "mlp reconstruction error", "output": "logit",
    }  # fmt: skip


def test_neuronpedia_influence_is_the_share_of_the_stronger_nodes(tmp_path):
    entries = {entry["name"]: entry for entry in exported(SMALL, tmp_path)["nodes"]}
    inner = [node for node in SMALL.nodes if node.kind != "output"]
    total = sum(abs(node.effect) for node in inner)
    for node in inner:
        share = sum(abs(other.effect) for other in inner if abs(other.effect) >= abs(node.effect)) / total
        assert entries[node.name]["influence"] == pytest.approx(share)
    assert entries["metric"]["influence"] is None


def test_neuronpedia_takes_a_circuit_of_one_layer_and_one_without_layers(tmp_path):
    one = Node("blocks.0.attn.W_K/3", "blocks.0.attn.W_K", "parameter", 0, (0.5,), 3, 'says "hi"')
    end = Node("metric", "metric", "output", 1, ())
    for node in (one, dataclasses.replace(one, group="weight", name="weight/3")):
        graph = exported(Circuit((node, end), (Edge(node.name, end.name, 1.0),), (("a",),), 'the "m" (p='), tmp_path)
        assert_the_readers_take(graph)
        assert [entry["clerp"] for entry in graph["nodes"]] == [
            f'{node.name}: says "hi"',
            "Output \"the 'm' (p =\" (p=1.000)",
        ]
        assert [entry["layer"] for entry in graph["nodes"]] == ["1", "2"]


@pytest.mark.parametrize("scan", ["gpt2-small", "custom-1"])
@pytest.mark.parametrize("n_tokens", [1, 2, 11])
def test_neuronpedia_keeps_every_node_of_a_short_prompt(n_tokens, scan, tmp_path):
    circuit = dataclasses.replace(SMALL, prompts=(PROMPT[:n_tokens],) * 4)
    graph = exported(circuit, tmp_path, scan=scan)
    assert_the_readers_take(graph)
    meta = graph["metadata"]
    assert [token for token in meta["prompt_tokens"] if token] == list(PROMPT[:n_tokens])
    assert {meta["prompt_tokens"][entry["ctx_idx"]] for entry in graph["nodes"]} == {PROMPT[n_tokens - 1]}
    by_layer = {entry["name"]: meta["transcoder_list"][int(entry["layer"])] for entry in graph["nodes"]}
    assert all(node.group in by_layer[node.name] for node in circuit.nodes)


def test_the_oracle_refuses_what_the_readers_refuse(tmp_path):
    good = exported(SMALL, tmp_path)
    for change in (
        lambda g: g["metadata"].pop("prompt"),
        lambda g: g["metadata"].pop("transcoder_list"),
        lambda g: g["metadata"].update(transcoder_list=[]),
        lambda g: g["metadata"].update(prompt_tokens=["a"], prompt="a"),
        lambda g: g["nodes"][0].update(layer=0),
        lambda g: g["metadata"].update(slug="a b"),
        lambda g: g["nodes"][0].pop("clerp"),
        lambda g: g["nodes"][0].update(feature="3"),
        lambda g: g["nodes"][0].update(node_id=g["nodes"][1]["node_id"]),
        lambda g: g["links"][0].update(weight=None),
        lambda g: g["links"][0].update(source="none"),
        lambda g: g["nodes"][-1].update(clerp="no probability"),
        lambda g: [node.update(layer="0") for node in g["nodes"]],
    ):
        bad = copy.deepcopy(good)
        change(bad)
        with pytest.raises(Exception):  # noqa: B017 - an assertion, a look-up, or jsonschema's own kind
            assert_the_readers_take(bad)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slug": "he she"}, "slug='he she'. The site takes letters"),
        ({"slug": ""}, "slug=''"),
        ({"scan": "google/gemma"}, "scan='google/gemma'"),
        ({"prompt": 4}, "prompt=4: there are 4 prompts"),
        ({"prompt": -1}, "prompt=-1"),
    ],
)
def test_neuronpedia_settings_are_checked(changes, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        exported(SMALL, tmp_path, **changes)


def test_neuronpedia_needs_a_node_and_a_prompt(tmp_path):
    with pytest.raises(SettingError, match="there are 0 prompts"):
        exported(Circuit((), (), (), "m"), tmp_path)
    with pytest.raises(ExportError, match="no node but the output"):
        exported(Circuit((SMALL.nodes[-1],), (), (("a",),), "m"), tmp_path)


def test_scores_stand_beside_their_controls():
    names = ("faithfulness", "faithfulness_random", "faithfulness_random_best", "faith", "completeness_random")
    rows = {row.name: row.controls for row in score_rows(dict.fromkeys(names, 0.5))}
    assert rows == {"faithfulness": {"random": 0.5, "random_best": 0.5}, "faith": {}, "completeness_random": {}}
    assert all(len(row.controls) == 0 for row in score_rows({"a": 1.0, "ab": 2.0, "a b": 3.0}))


def test_a_circuit_prints_what_matters():
    text = repr(SMALL)
    assert text.splitlines()[0] == "Circuit of logit(he) − logit(she) on 4 prompts"
    assert "12 nodes (5 parameter, 3 SAE, 3 error, 1 output), 24 edges" in text
    assert re.search(r"faithfulness +0\.86  beside random 0\.12, matched 0\.2", text)
    assert "blocks.1.hook_resid_pre 4" in text
    best = max(SMALL.nodes, key=lambda node: abs(node.effect))
    assert re.search(rf"^{re.escape(best.name)} .*{re.escape(f'{best.effect:+.4g}')}", text, re.MULTILINE)
    assert "Whether they explain it was not measured." in repr(Circuit((), (), (), "m"))


def test_the_table_has_a_line_for_each_node_strongest_first():
    head, *lines = SMALL.table().splitlines()
    assert head.split() == ["node", "kind", "effect", "±", "label", "example"]
    ordered = sorted(SMALL.nodes[:-1], key=lambda node: -abs(node.effect))
    assert [line.split()[0] for line in lines] == [node.name for node in ordered]
    assert [float(line.split()[2]) for line in lines] == [pytest.approx(node.effect, rel=1e-3) for node in ordered]
    assert "«" in lines[0]
    assert len(SMALL.table(3).splitlines()) == 4


def test_the_view_highlights_the_examples(capsys):
    page = SMALL.view(2)._repr_html_()
    best = max(SMALL.nodes, key=lambda node: abs(node.effect))
    assert best.name in page
    assert page.count("outline:2px") == 4, "two examples each of two nodes, one token of each marked"
    assert "<script" not in page
    SMALL.show(2)
    assert best.name in capsys.readouterr().out
    assert len(SMALL._repr_html_()) > len(page)


def test_hostile_names_stay_text():
    bad = "<img src=x onerror='alert(1)'>\x1b[31m"
    shown = NodeExample((bad, bad), (1.0, -0.5), 1)
    circuit = Circuit((Node(bad, bad, "parameter", 0, (1.0,), 0, bad, (shown,)),), (), (("a",),), bad, {}, {bad: 0.1})
    assert "<img" not in circuit._repr_html_()
    for text in (repr(circuit), circuit.table()):
        assert "\x1b" not in text
    assert "\x1b[31m" not in str(circuit.view())


def test_a_view_refuses_strengths_without_a_colour():
    shown = NodeExample(("a",), (math.nan,), 0)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        changed(examples=(shown,)).view()
