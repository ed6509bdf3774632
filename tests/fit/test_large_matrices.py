"""Detours that large matrices and many samples take give what the direct way gives."""

import pytest
import torch

from param_features.fit import Encoder, encoder, loop
from param_features.fit.formats import LowRank
from param_features.gradients import Factored


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


@pytest.mark.parametrize("n_pos", [3, 40])
def test_leading_parts_from_factors_are_those_of_the_matrices(n_pos):
    gradients = {"w": Factored(draw(4, n_pos, 512), draw(4, n_pos, 600))}
    v_out, coords = LowRank({"w": (draw(9, 512, 2), draw(9, 600, 2))}), draw(4, 9) * (draw(4, 9) > 0.3)
    dense = gradients["w"].dense().matrix
    pairs = [
        (loop.leading_part(LowRank, gradients, {}, 5), dense),
        (loop.leading_left_over(LowRank, gradients, v_out, coords, {}, 5), dense - v_out.rebuilt(coords)["w"]),
    ]
    for found, matrix in pairs:
        expected = LowRank.leading({"w": matrix}, {}, 5)
        assert [t.shape for t in found.tensors] == [t.shape for t in expected.tensors]
        torch.testing.assert_close(found.materialize()["w"], expected.materialize()["w"], rtol=0, atol=1e-9)


def test_pursuit_of_many_samples_keeps_the_same_coordinates(monkeypatch):
    rows = torch.nn.functional.normalize(draw(12, 30))
    overlaps, gram = draw(5000, 30) @ rows.T, rows @ rows.T
    kept, threshold = Encoder(5).kept(overlaps, gram, 2.0)
    monkeypatch.setattr(encoder, "_MOST_NUMBERS", 0)
    again, same = Encoder(5).kept(overlaps, gram, 2.0)
    assert threshold == same
    assert torch.equal(kept, again)
