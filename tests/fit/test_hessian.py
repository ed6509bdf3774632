"""The Hessian method: curvature and its derivative against slow oracles, toys whose answer is known, and what is refused."""

import pytest
import torch
from torch import nn

import param_features as pf
from benchmarks import toys
from param_features.errors import SettingError
from param_features.fit import curvature
from param_features.fit.curvature import curvatures
from param_features.fit.formats import LowRank
from param_features.fit.hessian import HessianTrainer, climb_and_interference
from param_features.gradients import plan_engine
from param_features.measure import random_like
from param_features.params import adapter_for, plain_kernels, select
from param_features.problem import KL, SquaredError, read_inputs
from tests.models import Recurrent, built, normal
from tests.oracle import problem_of

DIVERGENCES = [KL(), SquaredError()]


def engine_of(model, params, tokens=None, inputs=None):
    adapter = adapter_for(model)
    subset = select(adapter.views(), params, adapter.aliases(), adapter.parts())
    found = read_inputs(adapter, tokens, inputs)
    return plan_engine(problem_of(adapter, subset, found)), found


def perceptron():
    model = built(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)))
    return engine_of(model, ["0.weight", "2.weight", "2.bias"], inputs=normal(6, 3))


def recurrent():
    return engine_of(built(Recurrent()), ["lstm.weight_hh_l0", "out.weight"], inputs=normal(4, 5, 4))


def random_directions(engine, n_features=3, rank=2, seed=0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for view in engine.subset.views:
        own_rank = min(rank, *view.matrix_shape)
        factors[view.name] = tuple(
            torch.randn(n_features, d, own_rank, generator=generator, dtype=torch.float64) for d in view.matrix_shape
        )
    return LowRank(factors)


def flat_outputs(engine, inputs, tensors):
    with engine.subset.replaced(tensors):
        output = engine.adapter.run(*inputs.args, **inputs.kwargs)
    return output.flatten(0, 1) if engine.per_position else output.flatten(1)


def twice_differentiated(engine, divergence, directions, inputs, reference=None):
    """d²/dt² D(f(W₀ + t u), y_r) at t = 0, forward mode over forward mode; y_r is the model's own output by default."""
    own = {name: tensor.detach() for name, tensor in engine.subset.tensors.items()}
    with plain_kernels():
        reference = divergence.to_reference(flat_outputs(engine, inputs, own).detach()) if reference is None else reference
        columns = []
        for feature in range(directions.n_features):
            matrices = directions.rows([feature]).materialize()
            u = {view.name: view.from_matrix(matrices[view.name][0]) for view in engine.subset.views}

            def value(tensors):
                return divergence.value(flat_outputs(engine, inputs, tensors), reference)

            def slope(tensors, u=u, value=value):
                return torch.func.jvp(value, (tensors,), (u,))[1]

            columns.append(torch.func.jvp(slope, (own,), (u,))[1])
    return torch.stack(columns, 1).detach()


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=["kl", "se"])
@pytest.mark.parametrize("case", [perceptron, recurrent])
def test_curvature_equals_the_second_derivative(case, divergence):
    engine, inputs = case()
    directions = random_directions(engine)
    expected = twice_differentiated(engine, divergence, directions, inputs)
    assert (expected > 1e-6).all()
    torch.testing.assert_close(curvatures(engine, divergence, directions, inputs), expected)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=["kl", "se"])
def test_curvature_of_a_language_model_is_that_of_every_position(tiny_hooked, tiny_tokens, divergence):
    engine, inputs = engine_of(tiny_hooked, ["blocks.0.attn.W_K", "blocks.1.mlp.W_out"], tokens=tiny_tokens[:3, :5])
    directions = random_directions(engine)
    found = curvatures(engine, divergence, directions, inputs)
    assert found.shape == (15, 3)
    torch.testing.assert_close(found, twice_differentiated(engine, divergence, directions, inputs))


def test_curvature_is_the_hessians_quadratic_form():
    engine, inputs = perceptron()
    engine, inputs = engine_of(engine.adapter.model, "0.weight", inputs=inputs.args[0])
    directions, divergence = random_directions(engine), KL()
    weight = engine.subset.tensors["0.weight"].detach()
    rows = directions.materialize()["0.weight"].flatten(1)
    found = curvatures(engine, divergence, directions, inputs)
    for sample in range(len(inputs)):
        one = inputs.rows([sample])
        own = flat_outputs(engine, one, {"0.weight": weight}).softmax(-1).detach()

        def value(flat, one=one, own=own):
            return divergence.value(flat_outputs(engine, one, {"0.weight": flat.reshape(4, 3)}), own)[0]

        hessian = torch.func.hessian(value)(weight.flatten())
        torch.testing.assert_close(found[sample], ((rows @ hessian) * rows).sum(1))


def test_against_another_reference_the_hessian_has_a_further_term():
    engine, inputs = perceptron()
    directions, other = random_directions(engine), normal(6, 3).softmax(-1)
    found = curvatures(engine, KL(), directions, inputs)
    assert not torch.allclose(found, twice_differentiated(engine, KL(), directions, inputs, other), rtol=0.05)


def test_padding_is_no_sample(tiny_hooked, tiny_tokens):
    mask = torch.ones(3, 5, dtype=torch.long)
    mask[1, 3:] = 0
    given = {"input_ids": tiny_tokens[:3, :5], "attention_mask": mask}
    engine, inputs = engine_of(tiny_hooked, "blocks.0.attn.W_K", tokens=given)
    directions = random_directions(engine)
    directions = directions.map(lambda tensor: tensor.requires_grad_())
    found = curvatures(engine, KL(), directions, inputs)
    assert found.shape == (13, 3)
    short = engine_of(tiny_hooked, "blocks.0.attn.W_K", tokens=tiny_tokens[1:2, :3])[1]
    torch.testing.assert_close(found[5:8], curvatures(engine, KL(), directions, short))
    found.sum().backward()
    assert all(bool(torch.isfinite(tensor.grad).all()) for tensor in directions.tensors)


def factor_gradients(engine, divergence, inputs, h_of) -> list[torch.Tensor]:
    directions = random_directions(engine).map(lambda tensor: tensor.requires_grad_())
    climb, interference = climb_and_interference(h_of(directions), directions.gram(), 0.2)
    return list(torch.autograd.grad(interference - climb, directions.tensors))


def curvatures_by_autograd(engine, divergence, inputs, directions):
    """From the dense Jacobian, every step by plain autograd."""
    own = {name: tensor.detach() for name, tensor in engine.subset.tensors.items()}
    jacobian = torch.func.jacrev(lambda tensors: flat_outputs(engine, inputs, tensors))(own)
    matrices = directions.materialize()
    changes = sum(
        torch.einsum("xopi,fpi->fxo", engine.subset[name].to_matrix(part.detach()), matrices[name])
        for name, part in jacobian.items()
    )
    output = flat_outputs(engine, inputs, own).detach()
    return (changes * divergence.curved(output, changes)).sum(-1).mT


@pytest.mark.parametrize("at_once", [100, 2], ids=["one chunk", "chunks"])
@pytest.mark.parametrize("divergence", DIVERGENCES, ids=["kl", "se"])
def test_the_objectives_gradient_by_factors_is_autograds(divergence, at_once, monkeypatch):
    monkeypatch.setattr(curvature, "n_together", lambda *_: at_once)
    engine, inputs = perceptron()
    ours = factor_gradients(engine, divergence, inputs, lambda u: curvatures(engine, divergence, u, inputs))
    oracle = factor_gradients(engine, divergence, inputs, lambda u: curvatures_by_autograd(engine, divergence, inputs, u))
    for found, expected in zip(ours, oracle, strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(found, expected)


def test_where_vmap_fails_the_gradient_is_taken_feature_by_feature(monkeypatch):
    engine, inputs = perceptron()
    expected = factor_gradients(engine, KL(), inputs, lambda u: curvatures(engine, KL(), u, inputs))
    grad = torch.autograd.grad

    def unbatched(*args, **kwargs):
        if kwargs.get("is_grads_batched"):
            raise RuntimeError("no vmap here")
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", unbatched)
    found = factor_gradients(engine, KL(), inputs, lambda u: curvatures(engine, KL(), u, inputs))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


def test_interference_by_hand():
    h, gram = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    climb, interference = climb_and_interference(h, gram, 0.0)
    assert climb == pytest.approx(2 + 5)
    assert interference == pytest.approx(2**0.5 * 0.25)
    assert climb_and_interference(h, gram, 1.0)[1] == pytest.approx(2**0.5)
    for alone in (h * torch.eye(2), torch.zeros(2, 2)):
        assert climb_and_interference(alone, gram, 0.0)[1] == pytest.approx(0, abs=1e-5)


XOR = {"n_features": 3, "method": "hessian", "steps": 120}


@pytest.fixture(scope="module")
def xor():
    return toys.xor(seed=0)


@pytest.fixture(scope="module")
def xor_fit(xor):
    return xor.decompose(**XOR)


def test_xor_has_a_feature_for_each_corner_and_controls_do_not(xor, xor_fit):
    scores = xor.score(xor_fit)
    assert sorted(xor.fires_highest(xor_fit)) == [(0, 1), (1, 0), (1, 1)]
    assert (scores.n_covered, scores.numbers["corners"]) == (3, 3)
    assert scores.mmcs > 0.98
    assert max(scores.shuffled, scores.random) < 0.85
    assert max(scores.n_covered_shuffled, scores.n_covered_random) < 2


def test_without_interference_directions_gather(xor):
    fit = pf.HessianSettings(interference=0.0, start="random")
    assert xor.score(xor.decompose(**XOR | {"steps": 80}, fit=fit)).n_covered < 3


def test_an_unfitted_random_start_finds_nothing(xor):
    fit = pf.HessianSettings(start="random")
    assert xor.score(xor.decompose(**XOR | {"steps": 1}, fit=fit)).n_covered < 3


def test_superposition_has_a_feature_for_each_input_and_controls_do_not():
    toy = toys.superposition(n_steps=600, n_inputs=2000)
    numbers = toy.score(toy.decompose(method="hessian", steps=120)).numbers
    assert numbers["own"] == 5 > 2 > numbers["own_random"]
    assert numbers["steepest"] > 0.9 > 0.5 > numbers["steepest_random"]
    few = toy.score(toy.decompose(method="hessian", steps=20, n_features=3)).numbers
    assert few["own"] <= 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.release) for seed in (1, 2))])
def test_random_starts_reach_the_same_features(seed):
    fit = pf.HessianSettings(start="random", steps=200)
    toy = toys.superposition(n_steps=600, n_inputs=2000, seed=seed)
    assert toy.score(toy.decompose(method="hessian", seed=seed, fit=fit, steps=None)).numbers["own"] >= 4


def test_same_seed_same_bits_and_another_seed_another_result(xor):
    call = XOR | {"steps": 5}
    first, again, other = xor.decompose(**call, seed=1), xor.decompose(**call, seed=1), xor.decompose(**call, seed=2)
    for one, two in zip(first.v_out.tensors, again.v_out.tensors, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.v_out.tensors[0], other.v_out.tensors[0])


def test_saved_and_loaded_they_are_the_same(xor, xor_fit, tmp_path):
    assert xor_fit.v_in is xor_fit.v_out
    assert xor_fit.config["method"] == "hessian"
    assert xor_fit.config["fit"]["spread"] == 0.8
    torch.testing.assert_close(xor_fit.v_out.norm(), torch.ones(3))
    xor_fit.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=xor.model)
    assert loaded.v_in is loaded.v_out
    assert torch.equal(loaded.v_out.tensors[0], xor_fit.v_out.tensors[0])
    assert dict(loaded.metrics) == dict(xor_fit.metrics)
    torch.testing.assert_close(loaded.activations(inputs=xor.inputs[:9]), xor_fit.activations(inputs=xor.inputs[:9]))


def test_ctrl_c_keeps_what_was_fitted(xor, monkeypatch, capsys):
    step = HessianTrainer.step

    def interrupted(trainer):
        if trainer.n_steps == 3:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(HessianTrainer, "step", interrupted)
    found = xor.decompose(**XOR)
    assert found.config["steps_done"] == 3
    assert "Interrupted after 3 of 120 steps" in capsys.readouterr().err
    torch.testing.assert_close(found.v_out.norm(), torch.ones(3))


def test_a_hooked_transformer_end_to_end(tiny_hooked, tiny_tokens):
    before = {name: tensor.clone() for name, tensor in tiny_hooked.state_dict().items()}
    fit = pf.HessianSettings(steps=20, batch_size=64, rank=2)
    call = {"n_features": 4, "l0": 1, "method": "hessian", "fit": fit, "progress": False}
    features = pf.decompose(tiny_hooked, ["blocks.0.attn.W_K", "blocks.1.mlp.b_in"], tiny_tokens, **call)
    assert features.activations(tiny_tokens[:2]).shape == (2, 10, 4)
    assert features.direction(0)["blocks.0.attn.W_K"].shape == (2, 16, 8)
    assert {"reconstruction_error", "control_pca", "control_random"} <= set(features.metrics)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_hooked.state_dict().items())
    engine, inputs = features.engine, read_inputs(features.engine.adapter, tiny_tokens, None)
    random = random_like(features.v_out, torch.Generator().manual_seed(0)).map(lambda tensor: tensor.to(torch.float64))
    fitted, drawn = (curvatures(engine, KL(), u, inputs).square().mean(0).detach() for u in (features.v_out, random))
    assert fitted.min() > drawn.mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"divergence": "sum"}, r"'sum' is none.*Accepted: 'kl', 'se'"),
        ({"divergence": lambda output, _: output.sum(1)}, r"'<lambda>' is none.*Accepted: 'kl', 'se'"),
        ({"fit": pf.FitSettings()}, r"fit is a FitSettings.*takes pf\.HessianSettings"),
        ({"method": "l3d", "fit": pf.HessianSettings()}, r"fit is a HessianSettings.*takes pf\.FitSettings"),
        ({"method": "hesian"}, r"Accepted: 'l3d', 'hessian', 'components'; nearest: 'hessian'"),
    ],
)
def test_combinations_without_meaning_are_refused(xor, changes, message):
    with pytest.raises(SettingError, match=message):
        xor.decompose(**{**XOR, **changes})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"steps": 0}, "steps=0 must be positive"),
        ({"lr": -1.0}, "lr=-1.0 must be positive"),
        ({"interference": -1.0}, "interference=-1.0 must not be negative"),
        ({"spread": 1.5}, r"spread=1.5 must lie in \[0, 1\]"),
        ({"start": "zero"}, "Accepted: 'gradients', 'random'"),
    ],
)
def test_settings_out_of_range_are_refused(bad, message):
    with pytest.raises(SettingError, match=message):
        pf.HessianSettings(**bad)
