"""The fit on gradients whose directions are known."""

from dataclasses import replace

import pytest
import torch

from param_features.fit import Fit, FitRequest, FitSettings, fit_l3d
from param_features.fit.formats import LowRank
from param_features.fit.l3d import remove_parallel, renormalize
from param_features.fit.training import Trainer
from param_features.gradients import Dense, GradientStore

N_PLANTED = 12
SETTINGS = FitSettings(steps=600, batch_size=256)


def planted_directions(seed: int = 0) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    directions = LowRank(
        {"w": (torch.randn(N_PLANTED, 8, 1, generator=generator), torch.randn(N_PLANTED, 7, 1, generator=generator))}
    )
    renormalize(directions)
    return directions


def planted_store(n_samples: int, seed: int, *, scale: float = 1.0) -> GradientStore:
    """Each sample sums the few planted directions that are active, with random signs and sizes, and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(n_samples, N_PLANTED, generator=generator) < 1.5 / N_PLANTED
    sizes = torch.randn(n_samples, N_PLANTED, generator=generator) * active
    matrix = torch.einsum("sf,foi->soi", sizes, planted_directions().materialize()["w"])
    noise = 0.01 * torch.randn(matrix.shape, generator=generator)
    store = GradientStore(n_samples, {"w": Dense(matrix)})
    store.add({"w": Dense(scale * (matrix + noise))})
    return store


def fitted(store: GradientStore, settings: FitSettings = SETTINGS, seed: int = 0, n_features: int = N_PLANTED):
    generator = torch.Generator().manual_seed(seed)
    return fit_l3d(store, FitRequest(n_features, 1, 1.5, settings), generator=generator, progress=False)


def best_cosines(directions: LowRank, truth: LowRank) -> torch.Tensor:
    return (truth.gram(directions).abs() / directions.norm() / truth.norm()[:, None]).max(1).values


@pytest.mark.parametrize(("selection", "least"), [("pursuit", 0.99), ("top_k", 0.99), ("l1", 0.9)])
def test_planted_directions_are_found_and_shuffled_ones_are_not(selection, least):
    found = fitted(planted_store(4000, seed=1), replace(SETTINGS, selection=selection), n_features=16)
    left, right = planted_directions().factors["w"]
    shuffled = LowRank({"w": (left, right.roll(1, 0))})
    assert best_cosines(found.dictionary.v_out, planted_directions()).mean() > least
    assert best_cosines(found.dictionary.v_out, shuffled).mean() < 0.65


def held_out_error(fit: Fit) -> float:
    return fit.dictionary.error(planted_store(1000, seed=2), 1.5)


@pytest.mark.parametrize(("selection", "most"), [("pursuit", 0.02), ("top_k", 0.15)])
def test_held_out_error_is_far_below_that_of_an_unfitted_start(selection, most):
    short = fitted(planted_store(4000, seed=1), replace(SETTINGS, steps=1, selection=selection))
    long = fitted(planted_store(4000, seed=1), replace(SETTINGS, selection=selection))
    assert held_out_error(long) < most
    assert held_out_error(long) < 0.4 * held_out_error(short)


def test_v_out_rows_have_unit_norm_and_a_tied_fit_has_one_set():
    fits = {
        selection: fitted(planted_store(500, 1), replace(SETTINGS, steps=20, selection=selection))
        for selection in ("pursuit", "top_k", "l1")
    }
    for selection, fit in fits.items():
        torch.testing.assert_close(fit.dictionary.v_out.norm(), torch.ones(N_PLANTED))
        assert (fit.dictionary.v_in is fit.dictionary.v_out) == (selection == "l1")
        assert (fit.dictionary.encoder.n_rounds is None) == (selection != "pursuit")


def test_same_seed_same_bits_and_another_seed_another_result():
    store, settings = planted_store(500, seed=1), replace(SETTINGS, steps=50)
    first, second, other = fitted(store, settings), fitted(store, settings), fitted(store, settings, seed=1)
    for one, two in zip(first.dictionary.v_in.tensors, second.dictionary.v_in.tensors, strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(first.dictionary.v_in.tensors[0], other.dictionary.v_in.tensors[0])
    assert first.dictionary.threshold == second.dictionary.threshold


def test_scale_of_the_gradients_scales_threshold_alone():
    settings = replace(SETTINGS, steps=50)
    small, large = (fitted(planted_store(500, 1, scale=scale), settings).dictionary for scale in (1.0, 1024.0))
    assert large.threshold == pytest.approx(1024 * small.threshold, rel=1e-3)
    torch.testing.assert_close(small.v_out.gram(large.v_out).diagonal(), torch.ones(N_PLANTED), rtol=1e-3, atol=1e-3)


def n_dead_after_a_bad_start(**changes) -> int:
    settings = replace(SETTINGS, selection="top_k", warm_start=0.0, dead_after=10, **changes)
    trainer = Trainer(planted_store(2000, seed=1), FitRequest(N_PLANTED, 1, 1.5, settings), torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in trainer.v_in.tensors:
            tensor[:6] *= 1e-6  # too weak ever to be selected
    for _ in range(300):
        trainer.step()
    return int(trainer.dead.sum())


def test_dead_features_are_revived_by_the_auxiliary_loss_or_by_resampling():
    assert n_dead_after_a_bad_start(revive=0.0, resample=0) == 6
    assert n_dead_after_a_bad_start(resample=0) == 0
    assert n_dead_after_a_bad_start(revive=0.0) == 0


def test_warm_start_falls_from_all_features_to_l0():
    settings = FitSettings(steps=100, selection="top_k")
    trainer = Trainer(planted_store(300, 1), FitRequest(10, 1, 2.0, settings), torch.Generator().manual_seed(0))
    seen = []
    for trainer.n_steps in (0, 5, 10, 50):
        seen.append(trainer.current_l0())
    assert seen[0] == 10
    assert 2 < seen[1] < 10
    assert seen[2:] == [2.0, 2.0]


def test_gradient_along_a_row_is_removed():
    directions = planted_directions().map(lambda tensor: tensor.clone().requires_grad_())
    directions.norm().sum().backward()
    assert directions.tensors[0].grad.norm() > 0.1
    remove_parallel(directions)
    for tensor in directions.tensors:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), atol=1e-6, rtol=0)


def test_features_come_with_the_largest_kept_activations_first():
    store = planted_store(2000, seed=1)
    found = fitted(store)
    with torch.no_grad():
        overlaps = found.dictionary.code_directions.inner(store.rows(slice(None)))
        energy = found.dictionary.encoder.kept(overlaps, found.dictionary.v_out.gram(), 1.5)[0].square().sum(0)
    assert torch.equal(energy, energy.sort(descending=True).values)


def test_ctrl_c_keeps_what_was_fitted(monkeypatch):
    store, step = planted_store(500, seed=1), Trainer.step

    def interrupted(trainer):
        if trainer.n_steps == 7:
            raise KeyboardInterrupt
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", interrupted)
    found = fitted(store)
    assert found.steps_done == 7
    torch.testing.assert_close(found.dictionary.v_out.norm(), torch.ones(N_PLANTED))
