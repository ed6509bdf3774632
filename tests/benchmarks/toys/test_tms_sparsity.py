"""Superposition over sparsity: the geometries of the toy-model work, each at its own sparsity, and losses by definition."""

import pytest
import torch

import param_features as pf
from benchmarks import toys
from param_features.errors import SettingError
from param_features.toys.tms import Tied

PROBABILITIES = (1.0, 0.25, 0.02)


@pytest.fixture(scope="module")
def found():
    before = torch.get_rng_state()
    models = toys.superposition_over_sparsity(PROBABILITIES, n_starts=6, n_steps=2000, batch_size=128)
    assert torch.equal(torch.get_rng_state(), before)
    return models


def best(found, place):
    return found.weights[place, found.losses[place].argmin()].T


@pytest.mark.parametrize(
    ("place", "shape"), [(0, [1, 1, 0, 0, 0]), (1, [1 / 2] * 4 + [0]), (2, [2 / 5] * 5)], ids=["dense", "between", "sparse"]
)
def test_features_are_alone_then_in_pairs_then_in_a_pentagon(found, place, shape):
    values = pf.development.dimensionality(best(found, place))
    assert values.sort(descending=True).values.tolist() == pytest.approx(shape, abs=0.1)


def test_dense_inputs_keep_the_two_features_that_count_most(found):
    norms = best(found, 0).norm(dim=1)
    assert (norms[:2] > 0.9).all() and (norms[2:] < 0.3).all()


def test_in_between_the_pairs_are_antipodal(found):
    rows = best(found, 1)
    kept = torch.nn.functional.normalize(rows[rows.norm(dim=1) > 0.5], dim=1)
    assert len(kept) == 4
    ordered = (kept @ kept.T).sort(1).values
    assert ordered[:, 0].tolist() == pytest.approx([-1] * 4, abs=0.1)
    assert ordered[:, 1:3].flatten().tolist() == pytest.approx([0] * 8, abs=0.3)


def test_a_model_is_the_module_of_its_weights_and_its_loss_is_the_weighted_error(found):
    model = found.model(2, 3)
    assert isinstance(model, Tied) and not model.training
    x = torch.rand(60_000, 5, generator=torch.Generator().manual_seed(8))
    x = x * (torch.rand(60_000, 5, generator=torch.Generator().manual_seed(9)) < 0.02)
    with torch.no_grad():
        error = ((model(x) - x).square() * 0.8 ** torch.arange(5)).mean() / 0.02
    assert float(found.losses[2, 3]) == pytest.approx(float(error), rel=0.15)
    assert found.losses.shape == (3, 6) and found.probabilities == PROBABILITIES


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"probabilities": ()}, "give one or more"),
        ({"probabilities": (0.5, 0.0)}, "each above 0"),
        ({"probabilities": (0.5,), "importance": 1.5}, "importance=1.5"),
        ({"probabilities": (0.5,), "n_starts": 0}, "all sizes positive"),
    ],
)
def test_settings_out_of_range_are_refused(bad, message):
    with pytest.raises(SettingError, match=message):
        toys.superposition_over_sparsity(**bad)


def test_the_plot_has_every_vector_at_its_probability(found):
    pytest.importorskip("plotly")
    values = torch.stack([pf.development.dimensionality(best(found, place)) for place in range(3)])
    figure = pf.plot.dimensionality({"W": values, "again": values}, PROBABILITIES)
    assert [trace.name for trace in figure.data] == ["W", "again"]
    assert list(figure.data[0].y) == values.flatten().tolist()
    places = torch.tensor(figure.data[0].x).view(3, 5)
    assert (places == places[:, :1]).all()
    assert places[:, 0].tolist() == pytest.approx([1, 4, 50], rel=0.05)
    assert sorted(line.y0 for line in figure.layout.shapes) == [2 / 5, 1 / 2, 1]
    with pytest.raises(SettingError, match=r"'W' of shape \(3, 5\), for 2 probabilities"):
        pf.plot.dimensionality({"W": values}, PROBABILITIES[:2])
    with pytest.raises(SettingError, match="found has nothing"):
        pf.plot.dimensionality({}, PROBABILITIES)
