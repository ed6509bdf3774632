"""Toys whose matrices are sums of rank-1 parts: the parts do sum to the matrices, and the models have learned their task."""

import pytest
import torch

from benchmarks.toys.component_scores import seen, singular_parts
from benchmarks.toys.component_toys import residual_mlp, superposition_layers
from param_features.errors import SettingError

FEW = {"n_inputs": 500, "n_steps": 400}
SMALL = {"n_features": 12, "d_embed": 30, "n_neurons": 6, "n_inputs": 500, "n_steps": 300, "probability": 0.05}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARAM_FEATURES_CACHE", str(tmp_path_factory.mktemp("toys")))
        yield


@pytest.fixture(
    params=[lambda: superposition_layers(3, 2, **FEW), lambda: superposition_layers(3, 2, has_identity=True, **FEW)]
    + [lambda n=n: residual_mlp(n, **SMALL) for n in (1, 2)],
    ids=["layers", "identity", "one layer", "two layers"],
)
def toy(request):
    return request.param()


def test_the_true_parts_sum_to_the_matrix_on_its_inputs(toy):
    for name, (left, right) in toy.truth.items():
        whole = seen(singular_parts(toy.matrices[name], 1000), toy.directions.get(name))
        torch.testing.assert_close(left.T @ right, whole[0].T @ whole[1], atol=1e-5, rtol=1e-5)


def test_the_model_is_trained_and_its_probes_have_one_feature_each(toy):
    target = toy.inputs + toy.inputs.relu() if (toy.inputs < 0).any() else toy.inputs
    with torch.no_grad():
        error, none = (toy.model(toy.inputs) - target).square().mean(), target.square().mean()
    assert error < 0.35 * none
    assert ((toy.probes != 0).sum(1) == 1).all() and toy.probes.shape == (len(toy.probes),) * 2
    assert not toy.model.training


def test_every_matrix_is_the_weight_of_a_layer_of_its_own(toy):
    layers = [module for module in toy.model.modules() if isinstance(module, torch.nn.Linear)]
    assert [matrix.shape for matrix in toy.matrices.values()] == [layers[k].weight.shape for k in order(toy)]
    pointers = {matrix.data_ptr() for matrix in toy.matrices.values()}
    assert len(pointers) == len(layers) == len(toy.params)


def order(toy):
    names = [name for name, _ in toy.model.named_parameters() if name.endswith("weight")]
    return [names.index(name) for name in toy.params]


def test_the_identity_inside_changes_no_output():
    plain, inside = (superposition_layers(3, 2, has_identity=has, **FEW) for has in (False, True))
    assert torch.equal(plain.model(plain.inputs), inside.model(inside.inputs))
    assert torch.equal(inside.matrices["inside.weight"], torch.eye(2))


def test_the_residual_model_reads_what_it_was_trained_on():
    toy = residual_mlp(1, **SMALL)
    embedding = toy.directions["W_in.0.weight"]
    off = torch.eye(30) - torch.linalg.pinv(embedding) @ embedding
    assert (toy.matrices["W_in.0.weight"] @ off).abs().max() < 1e-5
    assert embedding.norm(dim=1).tolist() == pytest.approx([1] * 12, rel=1e-5)


def test_neurons_that_layers_do_not_share_evenly_are_refused():
    with pytest.raises(SettingError, match="multiple of n_layers=2"):
        residual_mlp(2, n_neurons=5)
    with pytest.raises(SettingError, match="at most d_embed=10"):
        residual_mlp(1, n_features=20, d_embed=10)
