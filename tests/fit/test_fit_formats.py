"""Fits in every format: planted directions are found by the format of their kind; what users get does not depend on it."""

import pytest
import torch

import param_features as pf
from param_features.errors import RankError, SettingError
from param_features.fit import Fit, FitRequest, FitSettings, fit_l3d
from param_features.fit.formats import CP, FORMATS, Directions, LowRank, Tucker
from param_features.fit.formats.tucker import Block
from param_features.fit.l3d import remove_parallel, renormalize
from param_features.fit.training import Trainer
from param_features.gradients import Dense, GradientStore
from param_features.params import Modes

N_PLANTED = 12
MODES = {"w": Modes((3, 4), (7,))}
W_K = "blocks.0.attn.W_K"


def planted(kind: str, seed: int = 0) -> Directions:
    """Of CP rank 1 or of rank 2 along each axis."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(N_PLANTED, *shape, generator=generator)

    if kind == "cp":
        directions = CP({"w": ((draw(3, 1), draw(4, 1)), (draw(7, 1),))})
    else:
        directions = Tucker({"w": Block(draw(2, 2, 2), (draw(3, 2), draw(4, 2)), (draw(7, 2),))})
    renormalize(directions)
    return directions


def planted_store(truth: Directions, n_samples: int = 2000) -> GradientStore:
    """Each sample sums the few planted directions that are active, with random signs and sizes, and a little noise."""
    generator = torch.Generator().manual_seed(1)
    active = torch.rand(n_samples, N_PLANTED, generator=generator) < 1.5 / N_PLANTED
    sizes = torch.randn(n_samples, N_PLANTED, generator=generator) * active
    matrix = torch.einsum("sf,foi->soi", sizes, truth.materialize()["w"])
    store = GradientStore(n_samples, {"w": Dense(matrix)})
    store.add({"w": Dense(matrix + 0.01 * torch.randn(matrix.shape, generator=generator))})
    return store


def fitted(store: GradientStore, kind: str, rank: int, modes=MODES, n_features: int = 16, **changes) -> Fit:
    return fit_l3d(
        store,
        FitRequest(n_features, rank, 1.5, FitSettings(**{"steps": 400, "batch_size": 128} | changes), FORMATS[kind], modes),
        generator=torch.Generator().manual_seed(0),
        progress=False,
    )


def best_cosines(found: LowRank, truth: Directions) -> torch.Tensor:
    return (found.gram(truth).abs() / found.norm()[:, None] / truth.norm()).max(0).values


@pytest.mark.parametrize(
    ("kind", "rank", "selection"),
    [
        ("cp", 1, "pursuit"),
        pytest.param("tucker", 2, "pursuit", marks=pytest.mark.release),
        pytest.param("cp", 1, "top_k", marks=pytest.mark.release),
        ("tucker", 2, "top_k"),
        ("cp", 1, "l1"),
    ],
)
def test_planted_directions_are_found_by_the_format_of_their_kind(kind, rank, selection):
    truth = planted(kind)
    found = fitted(planted_store(truth), kind, rank, selection=selection).dictionary.v_out
    assert best_cosines(found, truth).mean() > (0.9 if selection == "l1" else 0.95)
    assert best_cosines(found, planted(kind, seed=1)).mean() < 0.6


def test_too_low_a_rank_does_not_find_them():
    truth = planted("tucker")
    found = fitted(planted_store(truth), "tucker", 1).dictionary.v_out
    assert best_cosines(found, truth).mean() < 0.9


def test_of_two_axes_a_cp_fit_takes_the_steps_of_the_matrix_format():
    store, modes = planted_store(planted("cp"), 500), {"w": Modes((12,), (7,))}
    cp, matrix = (fitted(store, kind, 2, modes, n_features=6, steps=10).dictionary for kind in ("cp", "matrix"))
    torch.testing.assert_close(cp.v_out.materialize(), matrix.v_out.materialize(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", FORMATS)
def test_gradient_along_a_row_is_removed(kind):
    directions = FORMATS[kind].leading(planted("tucker").materialize(), MODES, 2)
    directions = directions.map(lambda tensor: tensor.clone().requires_grad_())
    directions.norm().sum().backward()
    assert directions.tensors[0].grad.norm() > 0.1
    remove_parallel(directions)
    for tensor in directions.tensors:
        torch.testing.assert_close(tensor.grad, torch.zeros_like(tensor), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["cp", "tucker"])
@pytest.mark.parametrize("resample", [0, 4])
def test_features_too_weak_to_be_kept_restart(kind, resample):
    kept = {"selection": "top_k", "warm_start": 0.0, "dead_after": 10, "revive": 0.0}
    settings = FitSettings(steps=300, batch_size=128, resample=resample, **kept)
    store = planted_store(planted("cp"), 1000)
    request = FitRequest(N_PLANTED, 1, 1.5, settings, FORMATS[kind], MODES)
    trainer = Trainer(store, request, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tensor in trainer.v_in.tensors:
            tensor[:6] *= 1e-6
    for _ in range(60):
        trainer.step()
    assert bool((trainer.last_kept[:6] > 0).all()) == bool(resample)


def decomposed(model, tokens, **changes) -> pf.ParamFeatures:
    fit = pf.FitSettings(**{"steps": 20, "batch_size": 64, "selection": "top_k", "rank": 2} | changes)
    return pf.decompose(model, [W_K, "blocks.0.attn.b_K"], tokens, n_features=6, l0=2, fit=fit, progress=False)


@pytest.mark.parametrize(("kind", "selection"), [("matrix", "top_k"), ("cp", "top_k"), ("cp", "l1"), ("tucker", "top_k")])
def test_every_format_saves_and_loads_and_gives_the_same_again(kind, selection, tiny_hooked, tiny_tokens, tmp_path):
    features, again = (decomposed(tiny_hooked, tiny_tokens, format=kind, selection=selection) for _ in range(2))
    for one, two in zip(features.v_in.tensors, again.v_in.tensors, strict=True):
        assert torch.equal(one, two)
    assert features.config["format"] == kind
    assert (features.v_in is features.v_out) == (selection == "l1")
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=tiny_hooked)
    assert loaded.config["format"] == kind
    assert torch.equal(loaded.activations(tiny_tokens[:3]), features.activations(tiny_tokens[:3]))


def test_a_cp_feature_of_rank_1_is_one_outer_product_over_heads_within_heads_and_inputs(tiny_hooked, tiny_tokens):
    def n_terms(kind: str) -> int:
        w_k = decomposed(tiny_hooked, tiny_tokens, format=kind, rank=1).direction(0)[W_K]
        return max(int(torch.linalg.matrix_rank(w_k.movedim(axis, 0).flatten(1), rtol=1e-5)) for axis in range(3))

    assert n_terms("cp") == 1
    assert n_terms("matrix") > 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"format": "tuker"}, SettingError, r"format='tuker'.*'matrix', 'cp', 'tucker'; nearest: 'tucker'"),
        ({"rank": 17}, RankError, r"rank=17 lies outside 1 to 16.*'matrix'.*W_K 2·8×16"),
        ({"rank": 17, "format": "cp"}, RankError, r"1 to 16.*'cp'"),
        ({"rank": 17, "format": "tucker"}, RankError, r"1 to 16.*'tucker'"),
        ({"rank": 0, "format": "tucker"}, RankError, r"rank=0"),
    ],
)
def test_unknown_formats_and_ranks_out_of_range_are_refused(changes, error, message, tiny_hooked, tiny_tokens):
    with pytest.raises(error, match=message):
        decomposed(tiny_hooked, tiny_tokens, **changes)
