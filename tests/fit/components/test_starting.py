"""Components start at pairs of single gradients: common ones first and once, scaled to sum to the matrix."""

import pytest
import torch
from torch import nn

from param_features.fit.components import ComponentSettings, fit_components, starting
from param_features.fit.components.starting import gradient_starts, pairs_of, parts_along, parts_near, random_directions
from param_features.fit.formats import LowRank
from param_features.gradients import build_engine
from param_features.problem import read_model, read_problem
from tests.measure.component_cases import case_of
from tests.models import superposed


def units(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return nn.functional.normalize(rows, dim=1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("n", [2, 4, 9])
def test_each_direction_is_drawn_once_and_none_when_all_are_explained(n):
    left, right = units(4, 3), units(4, 5, seed=1)
    again = torch.tensor([0] * 40 + [1] * 20 + [2] * 5 + [3])
    found = again[starting._spread_out((-left[again], right[again]), n)]
    assert len(set(found.tolist())) == len(found) == min(n, 4)


def test_common_directions_are_drawn_before_rare_ones():
    left, right = units(12, 6), units(12, 8, seed=1)
    again = torch.cat([torch.tensor([0, 1]).repeat_interleave(500), torch.arange(2, 12)])
    assert set(again[starting._spread_out((left[again], right[again]), 2)].tolist()) == {0, 1}


def test_pairs_that_make_up_the_matrix_are_given_their_share_of_it_and_others_nothing():
    left, right, size = torch.eye(6, dtype=torch.double)[:4], units(4, 7), torch.tensor([1.0, -2, 3, 4], dtype=torch.double)
    weight = (left * size[:, None]).T @ right
    pairs = torch.cat([left, -left, units(3, 6)]), torch.cat([right, right, units(3, 7, seed=2)])
    parts = parts_along(weight, pairs)
    torch.testing.assert_close(parts.sum(), weight)
    torch.testing.assert_close(parts.U[:4], left * size[:, None], atol=0.02, rtol=0)
    assert torch.equal(parts.U[4:], torch.zeros(7, 6).double()) and torch.equal(parts.V, pairs[1])


@pytest.mark.parametrize(("n", "is_spanned"), [(1, False), (4, False), (20, True)])
def test_pairs_that_do_not_make_up_the_matrix_give_what_is_read_alone(n, is_spanned):
    weight = torch.randn(6, 7, generator=generator())
    mean = units(1, 7, seed=2).float()
    pairs = units(n, 6).float(), nn.functional.normalize(units(n, 7, seed=1).float() + 3 * mean, dim=1)
    assert parts_along(weight, pairs) is None
    parts = parts_near(weight, pairs)
    assert torch.allclose(parts.sum(), weight, atol=1e-4) == is_spanned
    assert (parts.V * pairs[1]).sum(1).min() > 0
    sizes = torch.linalg.svdvals(parts.V)
    assert sizes.max() / sizes.min() < 3
    assert torch.equal(parts_near(weight * 0, pairs).U, torch.zeros(n, 6))


@pytest.mark.parametrize("rank", [1, 2])
def test_directions_give_their_leading_factors_and_random_ones_where_they_are_few(rank):
    left, right = units(3, 6).reshape(3, 6, 1), units(3, 7, seed=1).reshape(3, 7, 1)
    if rank == 2:
        left, right = torch.cat([left, 0.1 * units(3, 6, seed=2).unsqueeze(2)], 2), torch.cat([right, right.flip(0)], 2)
    left[2] = 0  # a direction that does nothing in this matrix
    u, v = pairs_of(LowRank({"w": (left, right)}), {"w": 5}, generator())["w"]
    assert u.shape == (5, 6) and v.shape == (5, 7)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(5).double())
    overlap = (u[:2] * left[:2, :, 0]).sum(1) * (v[:2] * right[:2, :, 0]).sum(1)
    assert overlap.min() > 0.95
    fewer = pairs_of(LowRank({"w": (left, right)}), {"w": 1}, generator())["w"]
    assert torch.equal(fewer[1], v[:1])


def test_features_in_superposition_are_the_parts_from_the_start():
    model, names = superposed(), ["0.weight", "1.weight"]
    data = torch.rand(400, 5, generator=generator(1)) * (torch.rand(400, 5, generator=generator(2)) < 0.05)
    case = case_of(model, names, inputs=data, divergence="se")
    counts = dict.fromkeys(names, 20)
    settings = ComponentSettings(steps=1, batch_size=8, lr=1e-12)
    fit = fit_components(case.engine, case.divergence, case.data, counts, settings, generator=generator(), progress=False)
    corners, one_hot = model[1].weight.detach(), torch.eye(5)
    for name, (left, right) in {"0.weight": (corners, one_hot), "1.weight": (one_hot, corners)}.items():
        parts = fit.dictionary.parts[name]
        true, mine = (torch.einsum("ko,ki->koi", *pair).flatten(1) for pair in ((left, right), (parts.U, parts.V)))
        assert torch.cdist(true, mine).amin(1).max() < 0.2
        assert (mine.norm(dim=1) > 1e-6).sum() <= 7
        torch.testing.assert_close(parts.sum(), model.get_parameter(name), atol=1e-5, rtol=0)


def test_gradients_of_inputs_with_one_feature_give_the_parts_of_each_feature():
    model = nn.Linear(5, 3)
    data = torch.eye(5).repeat(30, 1) * torch.linspace(0.5, 1, 150)[:, None]
    problem = read_problem(read_model(model, "weight"), None, data, divergence="se", reference="sample")
    engine = build_engine(problem, lambda _: None)
    weights = {"weight": model.weight.detach()}
    left, right = gradient_starts(engine, problem.divergence, problem.data, weights, {"weight": 15}, generator())["weight"]
    assert left.shape == (15, 3) and right.shape == (15, 5)
    assert set(right.abs().argmax(1).tolist()) == set(range(5))
    torch.testing.assert_close(right.abs(), nn.functional.one_hot(right.abs().argmax(1), 5).float())
    torch.testing.assert_close(left, nn.functional.normalize(right @ model.weight.T, dim=1))


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_the_shorter_side_of_a_pair_is_what_the_matrix_makes_of_the_longer(shape):
    weight = torch.randn(shape, generator=generator())
    left, right = units(9, shape[0]).float(), units(9, shape[1], seed=1).float()
    found = starting._through(weight, (left, right))
    made = nn.functional.normalize(right @ weight.T, dim=1), nn.functional.normalize(left @ weight, dim=1)
    wanted = {(3, 7): (made[0], right), (7, 3): (left, made[1]), (4, 4): (left, right)}[shape]
    for mine, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, other)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, tokens):
        return self.head(torch.tanh(self.table(tokens)))


def test_positions_tables_and_several_matrices_have_starts_of_their_own_size():
    case = case_of(Tokens(), ["table.weight", "head.weight"], tokens=torch.arange(60).reshape(12, 5) % 11)
    sizes = {"table.weight": 4, "head.weight": 7}
    weights = {site.name: site.weight() for site in case.masked_model.sites}
    draws = [gradient_starts(case.engine, case.divergence, case.data, weights, sizes, generator(seed)) for seed in (0, 0, 1)]
    for name, n in sizes.items():
        assert [side.shape for side in draws[0][name]] == [(n, size) for size in weights[name].shape]
        assert all(map(torch.equal, draws[0][name], draws[1][name]))
        assert not torch.equal(draws[0][name][1], draws[2][name][1])


def test_a_model_without_gradients_starts_anywhere():
    model = nn.Linear(4, 3)
    case = case_of(model, ["weight"], inputs=torch.zeros(20, 4), divergence="se")
    weights = {"weight": model.weight.detach()}
    left, right = gradient_starts(case.engine, case.divergence, case.data, weights, {"weight": 5}, generator())["weight"]
    torch.testing.assert_close(torch.stack([left.norm(dim=1), right.norm(dim=1)]), torch.ones(2, 5))


@pytest.mark.parametrize(("n", "d_in"), [(8, 8), (3, 8), (20, 8)])
def test_random_directions_are_far_from_dependent(n, d_in):
    V = random_directions(n, d_in, generator())
    torch.testing.assert_close(V.norm(dim=1), torch.ones(n))
    sizes = torch.linalg.svdvals(V)
    assert sizes.max() / sizes.min() < 1.5
