"""Editing with a circuit: the user's model lacks the marked nodes inside the block, and side effects are measured."""

import pytest
import torch

import param_features as pf
from benchmarks import toys
from param_features.errors import Notice, SettingError

PARAMS = ("blocks.0.attn.W_V", "blocks.1.attn.W_K")


@pytest.fixture(scope="module")
def sets(tiny_hooked, tiny_tokens):
    call = {"n_features": 4, "l0": 2, "steps": 10, "n_samples": 200, "progress": False}
    return [pf.decompose(tiny_hooked, name, tiny_tokens, **call) for name in PARAMS]


def circuit(sets, tokens, **changes):
    call = {"n_nodes": 4, "n_random": 0, "ablation": "zero", "background": tokens[10:20]}
    return pf.circuit(sets, tokens[:5], pf.circuits.LogProbability(3), **(call | changes))


def test_without_nodes_the_model_is_as_with_the_features_ablated(sets, tiny_hooked, tiny_tokens):
    found = circuit(sets, tiny_tokens)
    others = tiny_tokens[20:23, :7]
    with found.without([f"{PARAMS[0]}/1", f"{PARAMS[1]}/2"]), torch.no_grad():
        own = tiny_hooked(others)
    with sets[0].ablate([1]), sets[1].ablate([2]), torch.no_grad():
        expected = tiny_hooked(others)
    torch.testing.assert_close(own, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        plain = tiny_hooked(others)
    assert not torch.allclose(own, plain)


def test_a_mean_ablated_block_on_the_prompts_is_the_circuits_own_ablation(sets, tiny_hooked, tiny_tokens):
    found = circuit(sets, tiny_tokens, ablation="mean")
    names = [f"{PARAMS[0]}/1", f"{PARAMS[0]}/error"]
    with found.without(names), torch.no_grad():
        values = tiny_hooked(tiny_tokens[:5])[:, -1].log_softmax(-1)[:, 3]
    shift = found.shift(names, n_random=2)
    assert shift.after == pytest.approx(float(values.mean()), abs=1e-8)


def test_a_block_that_is_never_entered_says_so(sets, tiny_tokens):
    found = circuit(sets, tiny_tokens)
    with pytest.warns(Notice, match=r"circuit.without\(\[.*1'\]\) was not entered"):
        found.without([f"{PARAMS[0]}/1"])


def test_the_block_leaves_no_hooks(sets, tiny_hooked, tiny_tokens):
    found = circuit(sets, tiny_tokens)
    with pytest.raises(RuntimeError, match="oops"), found.without([f"{PARAMS[0]}/1"]):
        raise RuntimeError("oops")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_hooked.modules())


def test_a_shift_tells_target_and_side_effects(sets, tiny_hooked, tiny_tokens):
    found = circuit(sets, tiny_tokens)
    marked, others = [f"{PARAMS[0]}/0", f"{PARAMS[0]}/3"], tiny_tokens[20:30]
    shift = found.shift(marked, others=others, n_random=3)
    with torch.no_grad():
        before = tiny_hooked(others)
        with sets[0].ablate([0, 3]):
            after, target = tiny_hooked(others), tiny_hooked(tiny_tokens[:5])
        base = tiny_hooked(tiny_tokens[:5])
    assert shift.before == pytest.approx(float(base[:, -1].log_softmax(-1)[:, 3].mean()))
    assert shift.after == pytest.approx(float(target[:, -1].log_softmax(-1)[:, 3].mean()))
    kl = (before.softmax(-1) * (before.log_softmax(-1) - after.log_softmax(-1))).sum(-1).mean()
    assert shift.kl == pytest.approx(float(kl), rel=1e-6)
    loss = torch.nn.functional.cross_entropy(after[:, :-1].flatten(0, 1), others[:, 1:].flatten())
    assert shift.side_after == pytest.approx(float(loss))
    assert shift.kl_random > 0 and shift.kl_random != pytest.approx(shift.kl)
    assert "KL in nats" in repr(shift)


def test_refusals(sets, tiny_tokens):
    found = circuit(sets, tiny_tokens)
    with pytest.raises(SettingError, match="No node 'W_V/1'. Nearest"):
        found.shift(["W_V/1"])
    with pytest.raises(SettingError, match="No node is given"):
        found.shift([])
    resampled = circuit(sets, tiny_tokens, ablation="resample", background=None)
    with pytest.raises(SettingError, match="nothing to resample from"), resampled.without([f"{PARAMS[0]}/1"]):
        pass
    with pytest.raises(SettingError, match="Side effects need"):
        resampled.shift([f"{PARAMS[0]}/1"], others=tiny_tokens[20:30])


def test_outputs_that_are_no_logits_have_no_kl():
    toy = toys.saturated()
    found = pf.circuit(
        toy.planted_features(), inputs=toy.inputs[:16], metric=toy.metric(), n_nodes=2, n_random=0, ablation="zero"
    )
    marked = [node.name for node in found.nodes if node.kind == "parameter"]
    shift = found.shift(marked, others=toy.inputs[16:32], metric=toy.metric(), n_random=1)
    assert shift.side_after < shift.side_before
    assert shift.kl != shift.kl and shift.kl_random != shift.kl_random
