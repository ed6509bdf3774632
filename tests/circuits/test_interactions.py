"""The interaction map equals double backward, within and across layers."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import FeatureCountError, SettingError

PARAMS = ("blocks.0.attn.W_V", "blocks.0.mlp.W_in", "blocks.1.attn.W_K")
CALL = {"n_features": 3, "l0": 1, "steps": 5, "n_samples": 200, "progress": False}


@pytest.fixture(scope="module")
def sets(tiny_hooked, tiny_tokens):
    return {name: pf.decompose(tiny_hooked, name, tiny_tokens, **CALL) for name in PARAMS}


def last(output):
    return output[:, -1].log_softmax(-1)[:, 3]


def hessian(sets, names, run):
    """∂²m/∂α∂α of weights W + Σ α_k v_k, by double backward."""

    def value(alpha):
        with ExitStack() as stack:
            for group, features in sets.items():
                new = {view.name: view.tensor.detach() for view in features.engine.subset.views}
                for place, name in enumerate(names):
                    if name.rpartition("/")[0] == group:
                        step = features.direction(int(name.rpartition("/")[2]))
                        new = {key: tensor + alpha[place] * step[key].to(tensor) for key, tensor in new.items()}
                stack.enter_context(features.engine.subset.replaced(new))
            return run()

    return torch.autograd.functional.hessian(value, torch.zeros(len(names), dtype=torch.float64))


def test_the_map_equals_double_backward(sets, tiny_hooked, tiny_tokens):
    found = pf.circuits.interactions(sets, tiny_tokens[:3], last)
    assert found.values.shape == (3, 9, 9)
    for row in range(3):
        expected = hessian(sets, found.names, lambda row=row: last(tiny_hooked(tiny_tokens[[row]]))[0])
        torch.testing.assert_close(found.values[row], expected, rtol=0, atol=1e-8)
    assert found.values.abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["rotary", "standard"])
def test_queries_and_keys_of_one_layer_interact(attention, tiny_tokens):
    from tests.models import hooked_transformer

    rotary = {"positional_embedding_type": attention, **({"rotary_dim": 8} if attention == "rotary" else {})}
    model = hooked_transformer(**rotary)
    both = {name: pf.decompose(model, f"blocks.1.attn.{name}", tiny_tokens, **CALL) for name in ("W_Q", "W_K")}
    found = pf.circuits.interactions(both, tiny_tokens[:2], last)
    for row in range(2):
        expected = hessian(both, found.names, lambda row=row: last(model(tiny_tokens[[row]]))[0])
        torch.testing.assert_close(found.values[row], expected, rtol=0, atol=1e-8)
    assert found.top(1, across=True)[0][0].startswith(("W_Q", "W_K"))


def test_a_gated_mlp_whose_activation_has_no_second_derivative_in_forward_mode(tiny_tokens):
    pytest.importorskip("transformers")
    from tests.adapters import zoo

    model, tokens = zoo.hf_llama(), tiny_tokens[:, :8]
    model.set_attn_implementation("eager")  # double backward, with which it is compared, needs it
    names = ("model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight")
    both = {name: pf.decompose(model, name, tokens, **CALL) for name in names}
    found = pf.circuits.interactions(both, tokens[:2], last)
    for row in range(2):
        expected = hessian(both, found.names, lambda row=row: last(model(tokens[[row]]).logits)[0])
        torch.testing.assert_close(
            found.values[row], expected, rtol=0, atol=1e-6
        )  # eager attention has a softmax in float32
    assert found.values[:, :3, 3:].abs().max() > 1e-3


def test_a_module_of_vectors_and_squared_error():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    call = {"n_features": 3, "l0": 1, "steps": 5, "progress": False}
    both = {name: pf.decompose(net, name, inputs=x, **call) for name in ("0.weight", "2.weight")}
    reference = both["0.weight"].references[0].double()
    found = pf.circuits.interactions(both, inputs=x[:4])
    assert "se" in found.metric
    for row in range(4):
        expected = hessian(both, found.names, lambda row=row: (net(x[[row]])[0] - reference).square().sum())
        torch.testing.assert_close(found.values[row], expected, rtol=0, atol=1e-8)


def test_some_features_alone(sets, tiny_tokens):
    whole = pf.circuits.interactions(sets, tiny_tokens[:2], last)
    some = pf.circuits.interactions(sets, tiny_tokens[:2], last, chosen=[2, 0])
    places = [whole.names.index(name) for name in some.names]
    assert [name.rpartition("/")[2] for name in some.names] == ["2", "0"] * 3
    torch.testing.assert_close(some.values, whole.values[:, places][:, :, places])
    by_set = pf.circuits.interactions(sets, tiny_tokens[:2], last, chosen={name: [1] for name in PARAMS})
    assert [name.rpartition("/")[0] for name in by_set.names] == list(PARAMS)


def test_the_strongest_pairs_come_first(sets, tiny_tokens):
    found = pf.circuits.interactions(sets, tiny_tokens[:3], last)
    strengths = [float(found.size[found.names.index(one), found.names.index(other)]) for one, other, _ in found.top(36)]
    assert strengths == sorted(strengths, reverse=True)
    assert len(found.top(100)) == 36
    assert all(one.rpartition("/")[0] != other.rpartition("/")[0] for one, other, _ in found.top(100, across=True))
    assert "×" in repr(found)


def test_refusals(sets, tiny_tokens):
    with pytest.raises(FeatureCountError, match="numbered 0 to 2"):
        pf.circuits.interactions(sets, tiny_tokens[:2], chosen=[3])
    with pytest.raises(SettingError, match="names no feature"):
        pf.circuits.interactions(sets, tiny_tokens[:2], chosen=[])
    with pytest.raises(SettingError, match="metric="):
        pf.circuits.interactions(sets, tiny_tokens[:2], "nothing")
