"""The relay toy: weights that are sums of planted features, circuits that follow from these, and their recovery."""

import copy
from itertools import product

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.relay import RELAY_OF_MARKER, WIRES
from param_features.errors import SettingError
from param_features.measure.agreement import cosines

pytestmark = pytest.mark.release

JOBS = range(5)
LAYERS = ("encode.weight", "decode.weight")


@pytest.fixture(scope="module")
def toy():
    return toys.relay()


@pytest.fixture(scope="module")
def fits(toy):
    return toy.decompose_layers(steps=400)


def _parts(toy, directions):
    """What each direction adds to its layer's weight beside the others, by least squares, as matrices in float64."""
    weights = dict(toy.model.named_parameters())
    parts = {}
    for layer, rows in directions.items():
        dense, weight = rows.materialize()[layer].double(), weights[layer].detach().double()
        coefficients = torch.linalg.lstsq(dense.flatten(1).T, weight.flatten()[:, None]).solution
        parts[layer] = coefficients[:, :, None] * dense
    return parts


@torch.no_grad()
def _measured(toy, job, parts, removed, prompts):
    """The metric of a model without these features, in float64; `toy.model` is left alone."""
    model = copy.deepcopy(toy.model).double()
    for layer, feature in removed:
        model.get_parameter(layer).sub_(parts[layer][feature])
    return toy.metric(job)(model(prompts)).mean()


def _effects(toy, job, directions, n=100):
    """By brute force: each feature's effect, and how much of it passes through each later one, as shares of the metric."""
    parts, prompts = _parts(toy, directions), toy.prompts(job, n).double()
    nodes = [(layer, k) for layer in LAYERS for k in range(len(parts[layer]))]
    whole = _measured(toy, job, parts, [], prompts)
    without = {node: _measured(toy, job, parts, [node], prompts) for node in nodes}
    pairs = [(one, two) for one, two in product(nodes, nodes) if (one[0], two[0]) == LAYERS]
    through = {
        pair: whole - without[pair[0]] - without[pair[1]] + _measured(toy, job, parts, pair, prompts) for pair in pairs
    }
    return {node: (whole - left) / whole for node, left in without.items()}, {pair: x / whole for pair, x in through.items()}


def test_the_weights_are_the_sum_of_orthonormal_planted_directions(toy):
    for layer, planted in toy.planted.items():
        torch.testing.assert_close(planted.gram(), torch.eye(planted.n_features), atol=1e-6, rtol=0)
        total = torch.einsum("f,foi->oi", toy.strengths[layer], planted.materialize()[layer])
        torch.testing.assert_close(total, dict(toy.model.named_parameters())[layer])


def test_a_job_adds_up_what_its_relays_pass_on(toy):
    x = toy.inputs[:500].double()
    sizes, (first, second) = x @ toy.markers.double().T, toy.strengths.values()
    model = copy.deepcopy(toy.model).double()
    for job in JOBS:
        expected = torch.zeros(500, dtype=torch.float64)
        for wire, (relay, to) in enumerate(WIRES):
            own = [m for m, fed in enumerate(RELAY_OF_MARKER) if fed == relay]
            into = (first[own] * sizes[:, own]).sum(1)
            expected += (to == job) * second[wire] * torch.relu(into - 0.5)
        torch.testing.assert_close(toy.metric(job)(model(x)), expected, atol=1e-6, rtol=1e-5)


def test_patterns_lie_along_no_axis(toy):
    for rows in (toy.markers, toy.outputs):
        assert rows.abs().max() < 0.95


@pytest.mark.parametrize("job", JOBS)
def test_the_truth_is_what_taking_planted_features_out_shows(toy, job):
    nodes, edges = toy.truth(job)
    effects, through = _effects(toy, job, toy.planted)
    assert {node for node, effect in effects.items() if effect > 1e-5} == nodes
    assert {pair for pair, share in through.items() if share > 1e-5} == edges
    assert min(effects[node] for node in nodes) > 0.02
    assert all(abs(effect) < 1e-6 for node, effect in effects.items() if node not in nodes)
    assert all(abs(share) < 1e-6 for pair, share in through.items() if pair not in edges)


def test_circuits_share_features_and_one_path_is_rarely_used(toy):
    nodes = [toy.truth(job)[0] for job in JOBS]
    assert all(any(nodes[job] & nodes[other] for other in JOBS if other != job) for job in JOBS)
    prompts = toy.prompts(4, 400)
    is_open = prompts @ toy.markers[11] > 0.5
    assert 0.1 < is_open.float().mean() < 0.4


def test_prompts_are_the_jobs_own_and_follow_their_seed(toy):
    state = torch.get_rng_state()
    for job in JOBS:
        prompts = toy.prompts(job, 30)
        assert prompts.shape == (30, 16)
        assert (toy.metric(job)(toy.model(prompts)) > 0.1).all()
        assert torch.equal(prompts, toy.prompts(job, 30))
        assert not torch.equal(prompts, toy.prompts(job, 30, seed=1))
    assert torch.equal(state, torch.get_rng_state())


def test_planted_features_are_features_and_ablating_them_takes_their_part_out(toy):
    features = toy.planted_features()
    parts, prompts = _parts(toy, toy.planted), toy.prompts(0, 20)
    for layer, planted in toy.planted.items():
        assert features[layer].v_out is planted
        with torch.no_grad(), features[layer].ablate([0]):
            left = toy.metric(0)(toy.model(prompts)).double().mean()
        torch.testing.assert_close(left, _measured(toy, 0, parts, [(layer, 0)], prompts.double()), atol=1e-5, rtol=0)
    assert not features["encode.weight"].metrics


@pytest.mark.parametrize("layer", LAYERS)
def test_a_fit_finds_every_planted_feature(toy, fits, layer):
    assert cosines(toy.planted[layer], fits[layer].v_out).abs().max(1).values.min() > 0.9


@pytest.mark.parametrize("job", JOBS)
def test_brute_force_on_fitted_features_finds_the_circuit_and_random_circuits_do_not(toy, fits, job):
    effects, through = _effects(toy, job, {layer: fit.v_out for layer, fit in fits.items()}, n=64)
    nodes = {node for node, effect in effects.items() if effect > 0.05}
    edges = {pair for pair, share in through.items() if share > 0.03}
    scores = toy.score(nodes, edges, features=fits, job=job)
    assert min(scores.node_precision, scores.node_recall, scores.edge_precision, scores.edge_recall) >= 0.9
    assert max(scores.random.values()) < 0.5
    assert scores.random_best["edge_precision"] < 0.9
    assert scores.rewired["edge_precision"] < 0.9


def test_a_circuit_of_another_job_fails(toy, fits):
    own, other = (toy.truth(job) for job in (0, 2))
    found = {layer: cosines(toy.planted[layer], fit.v_out).abs().argmax(1).tolist() for layer, fit in fits.items()}
    nodes = [(layer, found[layer][k]) for layer, k in own[0]]
    edges = [tuple((layer, found[layer][k]) for layer, k in edge) for edge in own[1]]
    assert toy.score(nodes, edges, features=fits, job=0).edge_recall == 1
    assert not own[1] & other[1]
    assert toy.score(nodes, edges, features=fits, job=2).edge_recall == 0


def test_what_does_not_exist_is_refused(toy):
    with pytest.raises(SettingError, match="Jobs are numbered 0 to 4"):
        toy.truth(5)
    with pytest.raises(SettingError, match="d_in=11 must be at least 12"):
        toys.relay(d_in=11)
    with pytest.raises(SettingError, match="rare=1.0 between"):
        toys.relay(rare=1.0)
