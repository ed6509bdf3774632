"""The loss of a step: two ways to compute it, and what its auxiliary part may move."""

import dataclasses

import pytest
import torch

from param_features.fit import FitSettings
from param_features.fit.formats import LowRank
from param_features.fit.l3d import l3d_loss
from param_features.gradients import Factored

N_FEATURES, D_OUT, D_IN = 40, 6, 7
DEAD = torch.arange(N_FEATURES) % 4 == 0


def directions(seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    factors = (torch.randn(N_FEATURES, d, 1, generator=generator, dtype=torch.float64) for d in (D_OUT, D_IN))
    found = LowRank({"w": tuple(factors)})  # type: ignore[arg-type]
    found.scale_(1 / found.norm())
    return found.map(lambda tensor: tensor.requires_grad_())


def samples() -> Factored:
    generator = torch.Generator().manual_seed(9)
    return Factored(*(torch.randn(50, 2, d, generator=generator, dtype=torch.float64) for d in (D_OUT, D_IN)))


def loss_and_gradients(gradient, dead=DEAD, selection="top_k", **changes):
    v_in, v_out = directions(0), directions(1)
    settings = dataclasses.replace(FitSettings(), selection=selection, **changes)
    seen = l3d_loss({"w": gradient}, gradient.square_norm(), v_in, v_out, l0=2, dead=dead, settings=settings)
    return seen, torch.autograd.grad(seen.loss, v_in.tensors + v_out.tensors)


@pytest.mark.parametrize("selection", ["pursuit", "top_k"])
@pytest.mark.parametrize("dead", [DEAD, torch.zeros(N_FEATURES, dtype=torch.bool)], ids=["some dead", "none dead"])
def test_the_sparse_products_give_the_loss_and_gradients_of_the_dense_ones(dead, selection):
    sparse, sparse_gradients = loss_and_gradients(samples().dense(), dead, selection)
    dense, dense_gradients = loss_and_gradients(samples(), dead, selection)
    assert samples().dense().samples_well == torch.backends.mkl.is_available()
    assert not samples().samples_well
    torch.testing.assert_close(sparse.loss, dense.loss)
    torch.testing.assert_close(sparse.errors, dense.errors)
    assert torch.equal(sparse.kept, dense.kept)
    for one, other in zip(sparse_gradients, dense_gradients, strict=True):
        torch.testing.assert_close(one, other)
        assert other.abs().max() > 0


@pytest.mark.parametrize("gradient", [samples(), samples().dense()], ids=["dense products", "sparse products"])
def test_the_auxiliary_loss_moves_dead_features_alone(gradient):
    _, without = loss_and_gradients(gradient, revive=0.0)
    _, with_it = loss_and_gradients(gradient, revive=0.5)
    for one, other in zip(without, with_it, strict=True):
        moved = (one - other).flatten(1).abs().amax(1) > 1e-12
        assert not moved[~DEAD].any()
        assert moved[DEAD].any()


def test_the_loss_is_the_square_error_of_the_reconstruction_that_is_never_built():
    gradient = samples().dense()
    seen, _ = loss_and_gradients(gradient, revive=0.0)
    v_in, v_out = (directions(seed).materialize()["w"].flatten(1) for seed in (0, 1))
    flat = gradient.matrix.flatten(1)
    rest = flat - ((flat @ v_in.T) * seen.kept) @ v_out
    torch.testing.assert_close(seen.loss, rest.square().sum(1).mean())
    assert int(seen.kept.sum()) == 2 * 50


def test_pursuits_gradient_is_that_of_the_error_with_least_squares_solved_anew():
    """The step holds the coordinates fixed: optimal as they are, moving with the directions they would change nothing."""
    gradient, v_out = samples().dense(), directions(1)
    seen, found = loss_and_gradients(gradient, selection="pursuit")
    flat, rows = gradient.matrix.flatten(1), v_out.materialize()["w"].flatten(1)
    errors = []
    for sample, kept in zip(flat, seen.kept, strict=True):
        taken = rows[kept]
        solution = torch.linalg.solve(taken @ taken.T, taken @ sample)
        errors.append((sample - solution @ taken).square().sum())
    loss = torch.stack(errors).mean()
    torch.testing.assert_close(seen.errors.mean(), loss)
    for one, other in zip(found[2:], torch.autograd.grad(loss, v_out.tensors), strict=True):
        torch.testing.assert_close(one, other)


def test_pursuits_encoder_learns_the_coordinates_zeros_among_them():
    gradient = samples().dense()
    seen, found = loss_and_gradients(gradient, selection="pursuit")
    v_in = directions(0)
    told = (v_in.inner({"w": gradient}) - seen.coords).square().sum(1).mean()
    torch.testing.assert_close(seen.loss, seen.errors.mean() + told)
    for one, other in zip(found[:2], torch.autograd.grad(told, v_in.tensors), strict=True):
        torch.testing.assert_close(one, other)
