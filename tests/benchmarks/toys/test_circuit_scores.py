"""Scores of circuits: one for the truth, low for random circuits, and what each false or missing part costs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.toys.circuit_scores import matched, read_circuit, score_circuit
from param_features.circuits import Circuit, Edge, Node
from param_features.errors import SettingError
from param_features.fit.formats import LowRank

TRUE_NODES = frozenset({("one", 0), ("one", 1), ("two", 2)})
TRUE_EDGES = frozenset({(("one", 0), ("two", 2)), (("one", 1), ("two", 2))})


def _directions(layer, rows):
    rows = torch.as_tensor(rows, dtype=torch.float32)
    return LowRank({layer: (rows[:, :, None], torch.ones(len(rows), 1, 1))})


PLANTED = {layer: _directions(layer, torch.eye(8)) for layer in ("one", "two")}


def _score(nodes, edges, found=PLANTED, **changes):
    return score_circuit((nodes, edges), (TRUE_NODES, TRUE_EDGES), planted=PLANTED, found=found, **changes)


def test_the_truth_scores_one_and_random_circuits_do_not():
    scores = _score(TRUE_NODES, TRUE_EDGES)
    assert [scores.node_precision, scores.node_recall, scores.edge_precision, scores.edge_recall] == [1, 1, 1, 1]
    # Of 8 features a layer 2 are true in the first and 1 in the second; of 64 edges 2.
    assert scores.random["node_precision"] == pytest.approx((2 * 2 / 8 + 1 / 8) / 3, abs=0.06)
    assert scores.random["edge_recall"] == pytest.approx(2 / 64, abs=0.04)
    assert scores.random_best["node_precision"] < 1
    # Two edges between the circuit's own three nodes can only be the true ones.
    assert scores.rewired == {"edge_precision": 1, "edge_recall": 1}


def test_rewired_edges_fall_on_true_ones_by_chance():
    nodes = {("one", k) for k in range(4)} | {("two", k) for k in range(4)}
    scores = _score(nodes, TRUE_EDGES)
    assert scores.rewired["edge_precision"] == pytest.approx(2 / 16, abs=0.08)


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.sets(st.tuples(st.sampled_from(["one", "two"]), st.integers(0, 7)), min_size=1),
    edges=st.sets(st.tuples(st.tuples(st.just("one"), st.integers(0, 7)), st.tuples(st.just("two"), st.integers(0, 7)))),
    seed=st.integers(0, 5),
)
def test_on_the_planted_features_scores_are_those_of_the_sets(nodes, edges, seed):
    scores = _score(nodes, edges, seed=seed)
    assert scores.node_precision == len(nodes & TRUE_NODES) / len(nodes)
    assert scores.node_recall == len(nodes & TRUE_NODES) / 3
    assert scores.edge_precision == (len(edges & TRUE_EDGES) / len(edges) if edges else 0)
    assert scores.edge_recall == len(edges & TRUE_EDGES) / 2
    assert scores == _score(sorted(nodes, reverse=True), list(edges) * 2, seed=seed)
    assert all(0 <= value <= 1 for value in scores.numbers.values())


def test_signs_and_order_of_fitted_features_do_not_matter():
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    found = {layer: _directions(layer, -2 * torch.eye(8)[order]) for layer in PLANTED}
    place = {int(k): n for n, k in enumerate(order)}
    nodes = [(layer, place[k]) for layer, k in TRUE_NODES]
    edges = [((one, place[k]), (two, place[j])) for (one, k), (two, j) in TRUE_EDGES]
    scores = _score(nodes, edges, found)
    assert (scores.node_precision, scores.edge_recall) == (1, 1)


def test_two_fitted_features_of_one_planted_count_once_for_recall_and_unlike_ones_are_false():
    near, unlike = torch.eye(8)[0].clone(), torch.eye(8)[0] + torch.eye(8)[1]
    near[3] = 0.7  # |cosine| 0.82; the other's is 0.71
    found = {"one": _directions("one", torch.stack([torch.eye(8)[0], near, unlike])), "two": PLANTED["two"]}
    assert matched(PLANTED, found)["one", 1] == ("one", 0)
    assert matched(PLANTED, found)["one", 2] is None
    scores = _score([("one", 0), ("one", 1), ("two", 2)], [(("one", 0), ("two", 2)), (("one", 1), ("two", 2))], found)
    assert (scores.node_precision, scores.node_recall) == (1, 2 / 3)
    assert (scores.edge_precision, scores.edge_recall) == (1, 1 / 2)
    assert _score([("one", 2)], [(("one", 2), ("two", 2))], found).node_precision == 0


def test_an_empty_circuit_has_found_nothing():
    assert set(_score([], []).numbers.values()) == {0}


def test_controls_follow_the_seed_alone():
    state = torch.get_rng_state()
    assert _score(TRUE_NODES, TRUE_EDGES, seed=1) == _score(TRUE_NODES, TRUE_EDGES, seed=1)
    assert _score(TRUE_NODES, TRUE_EDGES, seed=1) != _score(TRUE_NODES, TRUE_EDGES, seed=2)
    assert torch.equal(state, torch.get_rng_state())


def test_a_graph_is_read_without_errors_other_kinds_and_the_output():
    nodes = (
        Node("one/0", "one", "parameter", 0, (1.0,), feature=0),
        Node("one/error", "one", "error", 0, (1.0,)),
        Node("two/2", "two", "parameter", 1, (1.0,), feature=2),
        Node("an SAE/2", "an SAE", "sae", 1, (1.0,), feature=2),
        Node("output", "output", "output", 2, (1.0,)),
    )
    edges = (Edge("one/0", "two/2", 1.0), Edge("one/error", "two/2", 1.0), Edge("two/2", "output", 1.0))
    assert read_circuit(Circuit(nodes, edges, (), "job")) == ({("one", 0), ("two", 2)}, {(("one", 0), ("two", 2))})


def test_nodes_that_no_fit_has_are_refused():
    with pytest.raises(SettingError, match="'one' with 0 to 7"):
        _score([("one", 8)], [])
    with pytest.raises(SettingError, match="is no fitted feature"):
        _score([("one", 0)], [(("one", 0), ("three", 0))])
    with pytest.raises(SettingError, match="Layers: 'one', 'two'"):
        _score([], [], {"three": _directions("three", torch.eye(8))})


def test_every_number_is_printed_beside_its_controls():
    text = repr(_score(TRUE_NODES, TRUE_EDGES))
    assert text.count("random circuits") == 4
    assert text.count("rewired") == 2
