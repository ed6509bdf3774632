"""`pf.circuit`: planted circuits are found, edges conserve effects, scores mean what they say."""

import pytest
import torch

import param_features as pf
from benchmarks import toys
from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.choose import by_growth
from param_features.circuits.effects import attribution, read_subject
from param_features.circuits.find import edge_weights
from param_features.circuits.scores import frequencies, score, with_random_directions
from param_features.errors import NotBoundError, SettingError
from tests.saes import random_sae


@pytest.fixture(scope="module")
def relay():
    return toys.relay()


@pytest.fixture(scope="module")
def relay_features(relay):
    return relay.decompose_layers(steps=400)


@pytest.mark.slow
@pytest.mark.parametrize("job", range(5))
@pytest.mark.parametrize("how", ["growth", "attribution"])
def test_a_planted_circuit_is_found_from_fitted_features(relay, relay_features, job, how):
    prompts, metric = relay.prompts(job), relay.metric(job)
    size = float(metric(relay.model(prompts)).detach().mean())
    kept = {"n_nodes": len(relay.truth(job)[0])} if how == "growth" else {"threshold": 0.05 * size}
    call = {"ablation": "zero", "n_random": 0, "n_examples": 0, "edge_threshold": 0.02}
    found = pf.circuit(relay_features, inputs=prompts, metric=metric, **call, **kept)
    numbers = relay.score_circuit(found, features=relay_features, job=job).numbers
    for name in ("node_precision", "node_recall", "edge_precision", "edge_recall"):
        assert numbers[name] >= 0.9
        assert numbers[f"{name}_random"] < 0.5


def test_planted_directions_give_their_circuit_exactly(relay):
    features = relay.planted_features()
    for job in range(relay.n_jobs):
        prompts, metric = relay.prompts(job, 32), relay.metric(job)
        call = {"ablation": "zero", "n_random": 0, "n_examples": 0, "edge_threshold": 1e-6}
        found = pf.circuit(features, inputs=prompts, metric=metric, n_nodes=len(relay.truth(job)[0]), **call)
        numbers = relay.score_circuit(found, features=features, job=job).numbers
        assert min(numbers[name] for name in ("node_precision", "node_recall", "edge_recall")) == 1
        assert numbers["edge_precision"] >= 0.9


def test_integrated_gradients_repair_an_attribution():
    """The toy's metric is saturated: the gradient at the present weights misses what matters most."""
    toy = toys.saturated()
    features, inputs = toy.planted_features(), toy.inputs[:64]
    effects = {
        method: pf.circuits.indirect_effects(
            features, inputs=inputs, metric=toy.metric(), ablation="zero", method=method, n_steps=50
        )
        for method in ("attribution", "integrated", "exact")
    }
    exact = effects["exact"].mean[:4]
    closed = torch.stack([toy.effect([k], inputs).mean() for k in range(4)]).double()
    torch.testing.assert_close(exact, closed, rtol=1e-3, atol=1e-4)

    def agreement(method):
        return float(torch.corrcoef(torch.stack([effects[method].mean[:4], exact]))[0, 1])

    assert agreement("attribution") < 0.5 < 0.8 < agreement("integrated")
    assert (
        int(effects["integrated"].mean[:4].argmax()) == int(exact.argmax()) != int(effects["attribution"].mean[:4].argmax())
    )


@pytest.fixture(scope="module")
def sets(tiny_hooked, tiny_tokens):
    call = {"n_features": 5, "l0": 2, "steps": 10, "n_samples": 200, "progress": False}
    names = ("blocks.0.attn.W_V", "blocks.0.mlp.W_in", "blocks.1.attn.W_K", "blocks.1.mlp.W_out")
    return [pf.decompose(tiny_hooked, name, tiny_tokens, **call) for name in names]


@pytest.fixture(scope="module")
def found(sets, tiny_tokens):
    return pf.circuit(
        sets, tiny_tokens[:6], pf.circuits.LogProbability(3), n_nodes=6, n_rounds=3, n_random=3, background=tiny_tokens[6:20]
    )


def subject_of(sets, prompts, ablation="zero", saes=None):
    bare = read_subject(sets, prompts, None, pf.circuits.LogProbability(3), saes)
    return ablating(bare, Ablation(ablation))


def with_joint_parts(subject):
    """The amounts that features and errors hold together: they add up to the weights."""
    nothing = torch.zeros(len(subject.names), dtype=torch.bool)
    return -torch.cat([part[0] for part in subject.amounts_keeping(nothing).values()])


@pytest.mark.parametrize("with_sae", [False, True])
def test_what_flows_from_a_node_along_its_edges_is_its_attribution(sets, tiny_tokens, with_sae):
    """With errors as nodes and parts that add up, nothing is lost and nothing counted twice."""
    sae = random_sae(d_in=16, d_sae=24) if with_sae else None
    saes = {"blocks.0.hook_resid_post": sae.double()} if sae is not None else None
    subject = subject_of(sets, tiny_tokens[:4], saes=saes)
    parts = with_joint_parts(subject)
    weights = edge_weights(subject, torch.ones(len(subject.names), dtype=torch.bool))
    arrived = (weights[:, :-1] / subject.holds * parts).sum(1) + weights[:, -1]
    torch.testing.assert_close(arrived, attribution(subject).mean(0), rtol=1e-6, atol=1e-9)


def test_edges_lead_forward(found):
    depth = {node.name: node.depth for node in found.nodes}
    assert found.edges
    assert all(depth[edge.source] < depth[edge.target] for edge in found.edges)
    sizes = [abs(edge.weight) for edge in found.edges]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) >= 0.01 * max(sizes)


def test_nodes_are_the_chosen_features_the_errors_and_the_output(found, sets):
    kinds = [node.kind for node in found.nodes]
    assert (kinds.count("parameter"), kinds.count("error"), kinds.count("output")) == (6, 4, 1)
    assert [node.depth for node in found.nodes] == sorted(node.depth for node in found.nodes)
    assert all(len(node.effects) == 6 for node in found.nodes)
    assert all(0 < len(node.examples) <= 3 for node in found.nodes if node.kind == "parameter")
    assert found["output"].effect == pytest.approx(found.scores["metric_model"])
    with pytest.raises(SettingError, match="no node 'nobody'"):
        found["nobody"]


def test_scores_of_the_whole_and_of_nothing(sets, tiny_tokens):
    """All features: faithful, and nothing left without them."""
    subject = subject_of(sets, tiny_tokens[:6])
    generator = torch.Generator().manual_seed(0)
    everything = torch.ones(len(subject.names), dtype=torch.bool)
    drawn = with_random_directions(subject, generator)
    whole = score(subject, everything, n_random=2, generator=generator, randomised=drawn)
    assert whole["faithfulness"] == pytest.approx(1)
    assert whole["faithfulness_no_errors"] != pytest.approx(1)
    assert whole["faithfulness_random"] == pytest.approx(1)  # as many features are all of them
    assert whole["completeness"] == pytest.approx(0)
    assert whole["faithfulness_low"] == pytest.approx(1) == pytest.approx(whole["faithfulness_high"])
    nothing = score(subject, subject.is_error, n_random=0, generator=generator, randomised=drawn)
    assert nothing["faithfulness"] == pytest.approx(0)
    assert nothing["completeness"] == pytest.approx(1)
    assert nothing["n_features"] == 0


def test_scores_are_those_of_the_edited_model(found, sets, tiny_tokens, tiny_hooked):
    """m(C) and m(∅) of a zero-ablated circuit, from weights that are replaced by hand."""
    subject = subject_of(sets, tiny_tokens[:6])
    kept = by_growth(subject, 6, 3)
    chosen = [name for name, keep in zip(subject.names, kept.tolist(), strict=True) if keep]

    def measured(keep):
        replaced = []
        for features in sets:
            (name,) = features.params
            view = features.engine.subset[name]
            flat = {k: features.direction(k)[name].double().flatten() for k in range(5)}
            residual = features.residual()[name].double().flatten()
            inside = view.tensor.detach().double().flatten() - residual
            own = [flat[k] for k in range(5) if keep and f"{name}/{k}" in chosen]
            if own:
                basis = torch.stack(own, 1)
                residual = residual + basis @ torch.linalg.lstsq(basis, inside.unsqueeze(1)).solution[:, 0]
            replaced.append((features.engine.subset, {name: residual.reshape(view.shape).to(view.tensor)}))
        from contextlib import ExitStack

        with ExitStack() as stack, torch.no_grad():
            for subset, tensors in replaced:
                stack.enter_context(subset.replaced(tensors))
            return tiny_hooked(tiny_tokens[:6])[:, -1].log_softmax(-1)[:, 3]

    torch.testing.assert_close(subject.values(subject.amounts_keeping(kept)), measured(True), rtol=0, atol=1e-8)
    torch.testing.assert_close(subject.values(subject.amounts_keeping(subject.is_error)), measured(False), rtol=0, atol=1e-8)


def test_random_directions_are_grown_as_a_control(found, sets, tiny_tokens):
    """All of them are faithful; a few are scored in their own gap."""
    subject = subject_of(sets, tiny_tokens[:6])
    generator = torch.Generator().manual_seed(0)
    drawn = with_random_directions(subject, generator)
    everything = torch.ones(len(subject.names), dtype=torch.bool)
    whole = score(subject, everything, n_random=0, generator=generator, randomised=drawn)
    assert whole["faithfulness_directions"] == pytest.approx(1)
    empty, model = drawn.values(drawn.amounts_keeping(drawn.is_error)).mean(), drawn.values().mean()
    assert whole["gap_random"] == pytest.approx(float(model - empty))
    few = score(subject, by_growth(subject, 4, 3), n_random=0, generator=generator, randomised=drawn)
    own = drawn.values(drawn.amounts_keeping(by_growth(drawn, 4, 10))).mean()
    assert few["faithfulness_directions"] == pytest.approx(float((own - empty) / (model - empty)))
    assert "faithfulness_directions" in found.scores


def test_frequencies_are_densities(sets, tiny_tokens):
    subject = subject_of(sets[:1], tiny_tokens[:6])
    torch.testing.assert_close(frequencies(subject)[:5], sets[0].densities().double())


def test_the_same_seed_gives_the_same_circuit(found, sets, tiny_tokens):
    call = {"n_nodes": 6, "n_rounds": 3, "n_random": 3, "background": tiny_tokens[6:20]}
    again = pf.circuit(sets, tiny_tokens[:6], pf.circuits.LogProbability(3), **call)
    assert again.nodes == found.nodes and again.edges == found.edges and again.scores == found.scores


def test_a_circuit_survives_saving(found, tmp_path):
    back = pf.circuits.Circuit.load(found.save(tmp_path / "circuit.json"))
    assert back.nodes == found.nodes and back.edges == found.edges and dict(back.scores) == found.scores
    with pytest.raises(NotBoundError, match="loaded without one"):
        back.shift([found.nodes[0].name])


def test_sae_features_and_parameter_features_share_a_graph(sets, tiny_tokens):
    sae = random_sae(d_in=16, d_sae=24).double()
    call = {"n_nodes": 8, "n_rounds": 3, "n_random": 2, "saes": {"blocks.0.hook_resid_post": sae}}
    mixed = pf.circuit(sets, tiny_tokens[:6], pf.circuits.LogProbability(3), **call)
    groups = list(dict.fromkeys(node.group for node in mixed.nodes))
    assert groups.index("blocks.0.mlp.W_in") < groups.index("blocks.0.hook_resid_post") < groups.index("blocks.1.attn.W_K")
    kinds = {node.name: node.kind for node in mixed.nodes}
    ends = {(kinds[edge.source], kinds[edge.target]) for edge in mixed.edges}
    assert {"parameter", "sae"} <= {kind for pair in ends for kind in pair}
    examples = [node.examples for node in mixed.nodes if node.kind == "sae"]
    assert examples and all(one.strengths[one.position] > 0 for each in examples for one in each)


def test_refusals(sets, tiny_tokens):
    prompts, metric = tiny_tokens[:4], pf.circuits.LogProbability(3)
    with pytest.raises(SettingError, match="both choose the nodes"):
        pf.circuit(sets, prompts, metric, n_nodes=3, threshold=0.1)
    with pytest.raises(SettingError, match="there are 20 features"):
        pf.circuit(sets, prompts, metric, n_nodes=21)
    with pytest.raises(SettingError, match="The largest is"):
        pf.circuit(sets, prompts, metric, threshold=1e6)
    with pytest.raises(SettingError, match="threshold=-1 must be positive"):
        pf.circuit(sets, prompts, metric, threshold=-1)
    with pytest.raises(SettingError, match="edge_threshold=1"):
        pf.circuit(sets, prompts, metric, edge_threshold=1.0)
    with pytest.raises(SettingError, match="n_rounds=0"):
        pf.circuit(sets, prompts, metric, n_rounds=0)
