"""Matching two sets of directions, against dense matrices and every possible pairing."""

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import param_features as pf
from param_features.errors import FeatureMismatchError, NotBoundError
from param_features.fit.formats import LowRank
from param_features.measure.agreement import assign, correlations, cosines, match_directions

QUICK = {"n_features": 5, "l0": 1, "steps": 20, "progress": False}


def directions(n: int, rank: int = 1, seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return LowRank({"a": (draw(n, 4, rank), draw(n, 3, rank)), "b": (draw(n, 5, 1), draw(n, 1, 1))})


def dense(rows: LowRank) -> torch.Tensor:
    return torch.cat([matrix.flatten(1) for matrix in rows.materialize().values()], 1)


def matched(ours: LowRank, theirs: LowRank):
    return match_directions(ours, theirs, torch.Generator().manual_seed(0))


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_it_is_the_best_of_all_pairings_of_the_dense_directions(n, m, rank, other_rank, seed):
    ours, theirs = directions(n, rank, seed), directions(m, other_rank, seed + 1)
    expected = torch.nn.functional.cosine_similarity(dense(ours)[:, None], dense(theirs)[None], dim=-1)
    torch.testing.assert_close(cosines(ours, theirs), expected)
    found = matched(ours, theirs)
    assert len(found) == min(n, m)
    assert len(set(found.pairs[:, 0].tolist())) == len(set(found.pairs[:, 1].tolist())) == len(found)
    table = expected.abs() if n <= m else expected.abs().T
    best = max(sum(float(table[i, j]) for i, j in enumerate(order)) for order in permutations(range(max(n, m)), min(n, m)))
    assert float(found.cosine.abs().sum()) == pytest.approx(best)
    torch.testing.assert_close(found.cosine, expected[found.pairs[:, 0], found.pairs[:, 1]])
    assert (found.cosine.abs().diff() <= 0).all()
    torch.testing.assert_close(found.best, expected.abs().max(1).values)


def test_a_shuffled_and_turned_copy_is_found_again():
    ours, order = directions(6, 2), torch.tensor([3, 1, 5, 0, 4, 2])
    theirs = LowRank({name: (-2 * left[order], right[order]) for name, (left, right) in ours.factors.items()})
    found = matched(ours, theirs)
    assert {tuple(pair) for pair in found.pairs.tolist()} == {(int(own), place) for place, own in enumerate(order)}
    torch.testing.assert_close(found.cosine, -torch.ones(6, dtype=torch.float64))
    assert (found.mean_cosine, found.share_above(0.9)) == (pytest.approx(1), 1)
    assert found.control_cosine < 0.7


def test_one_to_one_is_stricter_than_best():
    """Two copies of one direction may both be nearest to the same feature, and only one of them is paired with it."""
    one, other = directions(2), directions(2, seed=3)
    twice = one.rows([0, 0])
    found = matched(twice, LowRank({name: (torch.cat([one.factors[name][0][:1], other.factors[name][0][:1]]),
                                           torch.cat([one.factors[name][1][:1], other.factors[name][1][:1]]))
                                    for name in one.factors}))  # fmt: skip
    assert found.best.tolist() == pytest.approx([1, 1])
    assert found.mean_cosine < 0.99
    assert found.share_above(0.9) == 0.5


def test_the_control_is_what_random_directions_reach():
    ours = directions(30)
    controls = [matched(ours, directions(30, seed=seed)) for seed in range(1, 6)]
    reached = sum(found.mean_cosine for found in controls) / 5
    assert matched(ours, ours).control_cosine == pytest.approx(reached, abs=0.06)


def test_correlations_are_pearsons_and_zero_for_constants():
    ours, theirs = torch.randn(50, 3), torch.randn(50, 4)
    theirs[:, 3] = -2 * ours[:, 1] + 5
    theirs[:, 0] = 7
    pairs = torch.tensor([[1, 3], [0, 2], [2, 0]])
    expected = torch.corrcoef(torch.stack([ours[:, 0], theirs[:, 2]]))[0, 1]
    torch.testing.assert_close(
        correlations(ours, theirs, pairs), torch.tensor([-1, float(expected), 0]).double(), rtol=1e-5, atol=1e-6
    )


def test_assign_takes_the_sign_for_nothing():
    assert assign(torch.tensor([[0.1, -0.9], [-0.8, 0.2]])).tolist() == [[0, 1], [1, 0]]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4))


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(300, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fits(model, inputs):
    return [pf.decompose(model, ["0.weight", "0.bias"], inputs=inputs, seed=seed, **QUICK) for seed in (0, 1)]


class TestFits:
    def test_with_itself_everything_agrees(self, fits, inputs):
        found = pf.match(fits[0], fits[0], inputs=inputs[:20])
        assert found.pairs[:, 0].tolist() == found.pairs[:, 1].tolist()
        assert (found.mean_cosine, found.mean_correlation) == (pytest.approx(1), pytest.approx(1))

    def test_it_is_symmetric(self, fits):
        there, back = pf.match(*fits), pf.match(*reversed(fits))
        assert there.mean_cosine == pytest.approx(back.mean_cosine)
        assert {(i, j) for i, j in there.pairs.tolist()} == {(i, j) for j, i in back.pairs.tolist()}
        assert 0 < there.mean_cosine < 1

    def test_what_is_printed_stands_beside_the_control(self, fits, inputs):
        text = repr(pf.match(*fits, inputs=inputs[:20]))
        for title in ("mean_cosine", "control_cosine", "above 0.9", "above 0.8", "above 0.5", "correlation"):
            assert title in text
        assert "correlation" not in repr(pf.match(*fits))

    def test_saved_fits_match_without_their_model_but_not_their_activations(self, fits, inputs, tmp_path):
        fits[1].save_pretrained(tmp_path)
        loaded = pf.load(tmp_path)
        assert pf.match(fits[0], loaded).mean_cosine == pytest.approx(pf.match(*fits).mean_cosine)
        with pytest.raises(NotBoundError):
            pf.match(fits[0], loaded, inputs=inputs[:5])

    def test_other_names_are_found_by_weights_or_given(self, model, fits, inputs):
        same = torch.nn.ModuleDict({"first": model[0]})
        same.forward = lambda x: model[2](torch.tanh(same["first"](x)))
        other = pf.decompose(same, ["first.weight", "first.bias"], inputs=inputs, **QUICK)
        assert pf.match(fits[0], other).mean_cosine == pytest.approx(1)
        with torch.no_grad():
            same["first"] = torch.nn.Linear(6, 5)
        trained = pf.decompose(same, ["first.weight", "first.bias"], inputs=inputs, **QUICK)
        with pytest.raises(FeatureMismatchError, match=r"'0.weight' of the first.*'first.weight' \(5, 6\).*names="):
            pf.match(fits[0], trained)
        assert len(pf.match(fits[0], trained, names={"0.weight": "first.weight", "0.bias": "first.bias"})) == 5

    def test_fits_of_other_parameters_are_refused(self, model, fits, inputs):
        weight = pf.decompose(model, "0.weight", inputs=inputs, **QUICK)
        with pytest.raises(FeatureMismatchError, match=r"The second fit also holds '0.bias'"):
            pf.match(weight, fits[0])
        with pytest.raises(FeatureMismatchError, match=r"'0.bias' of the first fit has no counterpart"):
            pf.match(fits[0], weight)
        with pytest.raises(FeatureMismatchError, match=r"same matrix shape \(5, 6\)"):
            pf.match(weight, fits[0], names={"0.weight": "0.bias"})
