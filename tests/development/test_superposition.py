"""Dimensionality on shapes whose value is known, and Gini's coefficient against its definition."""

import math

import pytest
import torch

import param_features as pf
from param_features.errors import InputError, NonFiniteError


def polygon(n, lengths=None):
    angle = torch.arange(n, dtype=torch.float64) * 2 * math.pi / n
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    return rows if lengths is None else rows * lengths[:, None]


@pytest.mark.parametrize(("n", "share"), [(1, 1), (2, 1 / 2), (3, 2 / 3), (4, 1 / 2), (5, 2 / 5), (9, 2 / 9)])
def test_regular_polygons_share_their_plane(n, share):
    assert pf.development.dimensionality(polygon(n)).tolist() == pytest.approx([share] * n)


def test_orthogonal_vectors_keep_a_dimension_each_whatever_their_lengths():
    rows = torch.diag(torch.tensor([0.1, 1.0, 7.0]))
    assert pf.development.dimensionality(rows).tolist() == pytest.approx([1, 1, 1])


def test_a_vector_of_zeros_has_none_and_takes_none():
    rows = torch.cat([torch.eye(2), torch.zeros(1, 2)])
    assert pf.development.dimensionality(rows).tolist() == pytest.approx([1, 1, 0])


def test_vectors_in_general_position_add_up_to_no_more_than_their_space():
    rows = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    assert float(pf.development.dimensionality(rows).sum()) < 5 + 1e-9


def test_features_count_by_their_directions(tiny_features):
    rows = torch.stack([tiny_features.direction(k)["blocks.0.attn.W_K"].flatten() for k in range(6)])
    expected = pf.development.dimensionality(rows).tolist()
    assert pf.development.dimensionality(tiny_features).tolist() == pytest.approx(expected, abs=1e-6)
    assert pf.development.dimensionality(tiny_features.v_out).tolist() == pytest.approx(expected, abs=1e-6)


def test_other_things_have_no_dimensionality():
    with pytest.raises(InputError, match=r"not \(3,\)"):
        pf.development.dimensionality(torch.zeros(3))
    with pytest.raises(InputError, match="not list"):
        pf.development.dimensionality([[1.0]])
    with pytest.raises(NonFiniteError, match="NaN"):
        pf.development.dimensionality(torch.tensor([[float("nan")]]))


def test_gini_is_half_the_relative_mean_difference():
    values = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (values[:, None] - values).abs().mean() / (2 * values.mean())
    assert float(pf.development.gini(values)) == pytest.approx(float(expected))
    assert float(pf.development.gini(-values)) == pytest.approx(float(expected))


def test_gini_of_equal_values_and_of_one_alone():
    found = pf.development.gini(torch.tensor([[2.0, 2, 2, 2], [0, 0, 5, 0], [0, 0, 0, 0]]))
    assert found[:2].tolist() == pytest.approx([0, 3 / 4], abs=1e-12)
    assert bool(found[2].isnan())
    with pytest.raises(InputError, match="one value or more"):
        pf.development.gini(torch.zeros(0))
