"""The CP and Tucker formats against dense tensors built from their definitions, and against the matrix format."""

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.fit.formats import CP, FORMATS, LowRank, Tucker
from param_features.fit.formats.tucker import Block, axis_ranks
from param_features.gradients import Dense, Factored, Indexed
from param_features.params import Modes

BIAS = Modes((3,), (1,))
MODES = [
    Modes((1,), (1,)),
    BIAS,
    Modes((4,), (3,)),
    Modes((2, 3), (4,)),  # W_K: heads, within heads, d_in
    Modes((4,), (2, 3)),  # W_O
    Modes((3,), (2, 2, 3)),  # a convolution
    Modes((2, 3), (3, 2)),
]
KINDS = ("cp", "tucker")

kinds = pytest.mark.parametrize("kind", KINDS)
sizes = given(modes=st.sampled_from(MODES), n=st.integers(1, 4), rank=st.integers(1, 4), seed=st.integers(0, 99))
quick = settings(deadline=None, max_examples=25)


def numbers(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def random_directions(kind: str, modes: Modes, n: int, rank: int, seed: int):
    """Of a parameter "a" with these modes and a bias "b"."""
    draw = numbers(seed)
    parts = {}
    for name, (out, into) in {"a": modes, "b": BIAS}.items():
        ranks = [rank] * len(out + into) if kind == "cp" else axis_ranks(out + into, rank)
        factors = [draw(n, d, r) for d, r in zip(out + into, ranks, strict=True)]
        sides = tuple(factors[: len(out)]), tuple(factors[len(out) :])
        parts[name] = sides if kind == "cp" else Block(draw(n, *ranks), *sides)
    return (CP if kind == "cp" else Tucker)(parts)


def defined(directions) -> torch.Tensor:
    """The directions by their definition, one einsum per parameter, as rows [feature n_params]."""
    rows = []
    for part in (directions.factors if isinstance(directions, CP) else directions.blocks).values():
        factors = [*part[-2], *part[-1]]
        axes, ranks = "ijklm"[: len(factors)], "abcde"[: len(factors)]
        if isinstance(directions, CP):
            terms = ",".join(f"f{axis}r" for axis in axes)
            rows.append(torch.einsum(f"{terms}->f{axes}", *factors).flatten(1))
        else:
            terms = ",".join(f"f{axis}{rank}" for axis, rank in zip(axes, ranks, strict=True))
            rows.append(torch.einsum(f"f{ranks},{terms}->f{axes}", part.core, *factors).flatten(1))
    return torch.cat(rows, 1)


def flat(directions) -> torch.Tensor:
    return torch.cat([matrix.flatten(1) for matrix in directions.materialize().values()], 1)


@kinds
@sizes
@quick
def test_five_operations_equal_dense_ones(kind, modes, n, rank, seed):
    ours, theirs = random_directions(kind, modes, n, rank, seed), random_directions(kind, modes, 3, 2, seed + 100)
    dense, others = defined(ours), defined(theirs)
    assert ours.n_features == n
    torch.testing.assert_close(flat(ours), dense)
    torch.testing.assert_close(ours.gram(), dense @ dense.T)
    torch.testing.assert_close(ours.gram(theirs), dense @ others.T)
    torch.testing.assert_close(ours.norm(), dense.norm(dim=1))
    factor = torch.rand(n, dtype=torch.float64) + 0.5
    ours.scale_(factor)
    torch.testing.assert_close(defined(ours), dense * factor[:, None])


@pytest.mark.parametrize("form", ["dense", "factored", "indexed"])
@kinds
@sizes
@quick
def test_inner_equals_dense_product_for_every_gradient_format(kind, form, modes, n, rank, seed):
    directions, draw = random_directions(kind, modes, n, rank, seed), numbers(seed + 1)
    d_out, d_in = prod(modes.out), prod(modes.into)
    first = {
        "dense": Dense(draw(7, d_out, d_in)),
        "factored": Factored(draw(7, 5, d_out), draw(7, 5, d_in)),
        "indexed": Indexed(draw(7, 5, d_out), torch.arange(35).reshape(7, 5) % d_in, d_in),
    }[form]
    bias = Dense(draw(7, 3, 1))
    rows = torch.cat([first.dense().matrix.flatten(1), bias.matrix.flatten(1)], 1)
    torch.testing.assert_close(directions.inner({"a": first, "b": bias}), rows @ defined(directions).T)


@kinds
@sizes
@quick
def test_folded_they_are_the_same_directions_and_no_wider_than_said(kind, modes, n, rank, seed):
    directions = random_directions(kind, modes, n, rank, seed)
    folded = directions.folded()
    torch.testing.assert_close(flat(folded), defined(directions))
    torch.testing.assert_close(folded.gram(directions), directions.gram(folded))
    ranks = axis_ranks(modes.out + modes.into, rank)
    width = rank if kind == "cp" else min(prod(ranks[: len(modes.out)]), prod(ranks[len(modes.out) :]))
    assert folded.factors["a"][0].shape == (n, prod(modes.out), width)
    assert folded.factors["a"][1].shape == (n, prod(modes.into), width)


@kinds
@sizes
@quick
def test_rows_joined_and_map_act_on_the_directions(kind, modes, n, rank, seed):
    ours, theirs = random_directions(kind, modes, n, rank, seed), random_directions(kind, modes, 2, rank, seed + 1)
    both = torch.cat([defined(ours), defined(theirs)])
    torch.testing.assert_close(defined(ours.joined(theirs)), both)
    order = torch.randperm(n + 2, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(defined(ours.joined(theirs).rows(order)), both[order])
    assert all(tensor.dtype == torch.float32 for tensor in ours.map(torch.Tensor.float).tensors)


@kinds
@sizes
@quick
def test_balancing_evens_the_tensors_and_leaves_the_directions(kind, modes, n, rank, seed):
    directions = random_directions(kind, modes, n, rank, seed)
    for power, tensor in enumerate(directions.tensors):
        tensor.mul_(3.0**power)
    before = defined(directions)
    directions.balance_()
    torch.testing.assert_close(defined(directions), before)
    for part in (directions.factors if kind == "cp" else directions.blocks).values():
        norms = [factor.norm(dim=1) for side in part[-2:] for factor in side]
        for norm in norms:
            torch.testing.assert_close(norm, norms[0] if kind == "cp" else torch.ones_like(norm))


@pytest.mark.parametrize("kind", ["matrix", *KINDS])
@sizes
@quick
def test_lengthening_is_the_gradient_of_half_the_square_norm(kind, modes, n, rank, seed):
    directions = random_directions("cp" if kind == "matrix" else kind, modes, n, rank, seed)
    directions = directions.folded() if kind == "matrix" else directions
    leaves = directions.map(lambda tensor: tensor.requires_grad_())
    dense = flat(leaves) if kind == "matrix" else defined(leaves)
    expected = torch.autograd.grad(0.5 * dense.square().sum(), leaves.tensors)
    with torch.no_grad():
        found = leaves.lengthening()
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two)


@kinds
@pytest.mark.parametrize("modes", MODES, ids=str)
@pytest.mark.parametrize("rank", [1, 2])
def test_leading_recovers_directions_of_its_own_format(kind, modes, rank):
    rank = min(rank, FORMATS[kind].largest_rank(modes))
    truth = random_directions(kind, modes, 20, rank, seed=0)
    found = FORMATS[kind].leading(truth.materialize(), {"a": modes, "b": BIAS}, rank)
    error = (defined(found) - defined(truth)).norm(dim=1) / defined(truth).norm(dim=1)
    if kind == "cp" and rank > 1 and len(modes.out + modes.into) > 2:
        assert error.median() < 1e-4  # alternating least squares is slow where terms lie close together
        assert error.max() < 0.1
    else:
        assert error.max() < 1e-9


def test_terms_at_right_angles_are_all_recovered():
    modes = Modes((4, 5), (6,))
    factors = [torch.linalg.qr(numbers(axis)(20, d, 3)).Q for axis, d in enumerate((4, 5, 6))]
    factors[0] = factors[0] * torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64)
    truth = CP({"a": (tuple(factors[:2]), (factors[2],))})
    torch.testing.assert_close(defined(CP.leading(truth.materialize(), {"a": modes}, 3)), defined(truth))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("modes", MODES, ids=str)
def test_leading_of_a_matrix_comes_closer_with_rank_and_reaches_it(kind, modes):
    matrix = numbers(1)(6, prod(modes.out), prod(modes.into))
    largest = FORMATS[kind].largest_rank(modes)
    errors = []
    for rank in range(1, largest + 1):
        found = FORMATS[kind].leading({"a": matrix}, {"a": modes}, rank).materialize()["a"]
        errors.append(float((found - matrix).norm() / matrix.norm()))
    assert errors == sorted(errors, reverse=True)
    if kind != "cp" or len(modes.out + modes.into) == 2:
        assert errors[-1] < 1e-9


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_of_two_axes_cp_and_tucker_are_the_matrix_format(rank):
    matrices, modes = {"a": numbers(2)(5, 4, 6), "b": numbers(3)(5, 3, 1)}, {"a": Modes((4,), (6,)), "b": BIAS}
    best = LowRank.leading(matrices, modes, rank)
    for kind in KINDS:
        torch.testing.assert_close(flat(FORMATS[kind].leading(matrices, modes, rank)), flat(best))
    cp = CP.leading(matrices, modes, rank)
    assert [tensor.shape for tensor in cp.tensors] == [tensor.shape for tensor in best.tensors]
    for one, two in zip(cp.folded().tensors, cp.tensors, strict=True):
        assert torch.equal(one, two)


@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=4), rank=st.integers(1, 9))
@quick
def test_tucker_ranks_are_those_of_a_random_tensor(shape, rank):
    draw, ranks = numbers(0), axis_ranks(shape, rank)
    asked = [min(rank, d) for d in shape]
    tensor = draw(*asked)
    for axis, d in enumerate(shape):
        tensor = torch.tensordot(tensor, draw(asked[axis], d), dims=([0], [0]))
    found = [int(torch.linalg.matrix_rank(tensor.movedim(axis, 0).flatten(1))) for axis in range(len(shape))]
    assert found == ranks


def test_a_component_of_zeros_stays_finite():
    for kind in FORMATS:
        found = FORMATS[kind].leading({"a": torch.zeros(2, 6, 4)}, {"a": Modes((2, 3), (4,))}, 2)
        found.balance_()
        assert all(tensor.isfinite().all() for tensor in (*found.tensors, *found.lengthening()))
