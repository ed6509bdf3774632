"""Sweeps of models whose gradients are given, so that the right setting is known."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import FeatureCountError, RankError, SampleCountError, SettingError, StoreError
from param_features.run import Sweep
from param_features.run.from_gradients import Decomposition
from param_features.run.sweeping import sweeps as run

FIT = pf.FitSettings(steps=100, batch_size=128)
QUICK = pf.FitSettings(steps=4, batch_size=16)


class Given(nn.Module):
    """Whose gradient for the divergence `sum` is the input itself."""

    def __init__(self, d_out: int, d_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_out, d_in))

    def forward(self, x):
        return (x * self.weight).sum((1, 2))[:, None]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(n_features: int, rank: int, n_kept: int, *, n: int = 800, noise: float = 0.02) -> torch.Tensor:
    """Gradients [n 8 7], each a sum of `n_kept` of the planted directions with Gaussian weights."""
    directions = torch.einsum("nor,nir->noi", normal(n_features, 8, rank, seed=1), normal(n_features, 7, rank, seed=2))
    directions /= directions.flatten(1).norm(dim=1)[:, None, None]
    which = normal(n, n_features, seed=3).argsort(1)[:, :n_kept]
    samples = torch.einsum("sk,skoi->soi", normal(n, n_kept, seed=4), directions[which])
    return samples + noise * normal(n, 8, 7, seed=5)


def swept(inputs: torch.Tensor, **call) -> Sweep:
    model = Given(*inputs.shape[1:])
    settings = {"inputs": inputs, "divergence": "sum", "fit": FIT, "n_samples": len(inputs), "progress": False}
    return pf.sweep(model, "weight", **settings | call)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def found(folder):
    """Six planted directions of rank 2, two in each sample."""
    return swept(planted(6, 2, 2), n_features=[3, 6, 12], rank=[1, 2], l0=[1, 2], directory=folder)


def test_the_planted_number_rank_and_l0_are_recommended(found):
    features = found.recommended
    assert (features.n_features, features.config["rank"], features.config["l0"]) == (6, 2, 2)
    assert features.metrics["reconstruction_error"] < 0.05
    assert "n_features=6, rank=2, l0=2: error" in found.reason
    assert "control_pca, its strongest control" in found.reason


def test_each_row_is_what_decompose_finds_from_the_same_store(found, folder):
    place = next(place for place, row in enumerate(found.rows) if row.setting == (3, 2, 1, 0))
    alone = pf.decompose(
        Given(8, 7), store=folder / "store", n_features=3, l0=1, fit=dataclasses.replace(FIT, rank=2), progress=False
    )
    row = found.rows[place]
    assert dict(found.fits[place].metrics) == dict(alone.metrics)
    assert (row.error, row.size) == (alone.metrics["reconstruction_error"], 3 * 2 * (8 + 7))
    assert row.controls["control_svd_w"] == alone.metrics["control_svd_w"]


def test_the_shares_of_the_top_feature_are_those_of_the_codes(found, folder):
    row, features = found.rows[-1], found.fits[-1]
    held_out = pf.FactorStore.open(folder / "store").held_out.rows(slice(None))["weight"].matrix
    overlaps = torch.einsum("soi,noi->sn", held_out, features.v_out.materialize()["weight"])
    kept, _ = features.dictionary.encoder.kept(overlaps, features.v_out.gram(), row.setting.l0)
    by_feature = [[c for c in column if c] for column in kept.T.tolist()]
    numbers, squares = [len(own) for own in by_feature], [sum(c * c for c in own) for own in by_feature]
    assert row.top_kept == pytest.approx(max(numbers) / sum(numbers))
    assert row.top_norm == pytest.approx(max(squares) / sum(squares), rel=1e-4)


def test_the_pareto_rows_are_those_that_nothing_beats(found):
    points = [(row.error, row.setting.l0, row.size) for row in found.rows]
    for row, (error, l0, size) in zip(found.rows, points, strict=True):
        worse = any(e <= error and k <= l0 and s <= size and (e, k, s) != (error, l0, size) for e, k, s in points)
        assert (row in found.pareto) == (not worse)
    assert 3 <= len(found.pareto) < len(found.rows)


def test_the_table_and_the_rows_say_the_same(found):
    text = repr(found)
    lines = [line for line in text.splitlines() if line.strip()[0].isdigit()]
    assert len(lines) == len(found.rows) == found.n_asked == 12
    for line, row in zip(lines, found.as_rows(), strict=True):
        assert f" {row['reconstruction_error']:.3f}  {row['training_error']:.3f}  {row['control_pca']:.3f} " in line
        assert (" p" in line) == row["is_pareto"]
        assert (">" in line) == row["is_recommended"]
    assert sum(row["is_recommended"] for row in found.as_rows()) == 1
    assert "recommended: n_features=6, rank=2, l0=2" in text


def test_best_has_the_lowest_error_of_those_that_beat_their_controls(found):
    allowed = [row.error for row in found.rows if row.is_eligible]
    assert found.best.metrics["reconstruction_error"] == min(allowed)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [pytest.param((8, 7), marks=pytest.mark.release), (1, 16)], ids=str)
def test_noise_gives_no_recommendation(shape):
    found = swept(normal(800, *shape), n_features=[8, 48], l0=[1, 4])
    assert found.recommended is None
    assert found.best is None
    assert (
        "none. No setting lies 5% and two standard errors below all of its controls. The nearest, n_features="
        in found.reason
    )
    for row in found.rows:
        assert not row.is_eligible
        assert ("more features than parameters" in row.flags) == (row.setting.n_features > shape[0] * shape[1])


def test_a_fit_with_everything_on_one_feature_is_flagged_and_not_recommended():
    """One direction in every sample, large, beside sparse small ones: at l0 1 nothing else is ever kept."""
    common = torch.outer(normal(8, seed=6), normal(7, seed=7))
    inputs = 0.1 * planted(6, 1, 1, n=600) + 5 * common / common.norm() * (1 + 0.1 * normal(600, 1, 1, seed=8))
    (row,) = swept(inputs, n_features=6, l0=1).rows
    assert (row.top_kept, row.top_norm, row.dead) == (1, 1, 5 / 6)
    assert row.is_collapsed
    assert "collapsed" in row.flags
    assert not row.is_eligible


def test_a_fit_whose_features_are_mostly_dead_is_flagged():
    """Four planted directions, and forty features that nothing revives."""
    fit = pf.FitSettings(steps=60, batch_size=128, selection="top_k", resample=0, revive=0, warm_start=0)
    found = swept(planted(4, 1, 1, n=600), n_features=40, l0=1, fit=fit)
    (row,) = found.rows
    assert row.dead == found.fits[0].metrics["dead"] / 40 > 0.5
    assert "collapsed" in row.flags
    alike = dataclasses.replace(row, top_kept=0.1, top_norm=0.1)
    assert alike.is_collapsed
    assert not dataclasses.replace(alike, dead=0.1).is_collapsed


@pytest.mark.slow
def test_a_fit_of_too_few_steps_is_flagged_and_a_longer_one_is_not():
    short, long = (
        swept(planted(12, 2, 2), n_features=12, rank=2, l0=2, fit=pf.FitSettings(steps=steps, batch_size=128, lr=3e-3)).rows[
            0
        ]
        for steps in (80, 160)
    )
    assert short.is_undertrained
    assert "under-trained" in short.flags
    assert not long.is_undertrained
    assert long.error < 0.8 * short.error


@pytest.mark.slow
def test_a_fit_of_too_few_samples_is_overfit():
    (row,) = swept(normal(120, 8, 7), n_features=60, rank=4, l0=4).rows
    assert row.is_overfit
    assert "overfit" in row.flags
    assert row.training_error < 0.8 * row.error


@pytest.mark.slow
def test_several_seeds_agree_where_the_truth_is_one():
    found = swept(planted(6, 1, 2), n_features=6, l0=2, seeds=[0, 1])
    assert [row.setting.seed for row in found.rows] == [0, 1]
    assert found.rows[0].agreement == pf.match(*found.fits).mean_cosine > 0.9


def quick(inputs: torch.Tensor, **call) -> Sweep:
    return swept(inputs, **{"fit": QUICK, "n_features": [3, 5], "l0": 1} | call)


def test_finished_fits_are_read_again_and_new_ones_added(tmp_path, monkeypatch):
    inputs, count = normal(60, 4, 3), []
    fitted = Decomposition.fitted
    monkeypatch.setattr(Decomposition, "fitted", lambda run: count.append(run.request.n_features) or fitted(run))
    first = quick(inputs, directory=tmp_path)
    again = quick(inputs, directory=tmp_path, n_features=[3, 4, 5])
    assert count == [3, 5, 4]
    by_setting = {row.setting: row for row in again.rows}
    assert all(by_setting[row.setting] == row for row in first.rows)
    assert (tmp_path / "store" / "manifest.json").exists()


def test_a_fit_that_was_cut_short_on_disk_is_made_again(tmp_path):
    first = quick(normal(60, 4, 3), directory=tmp_path)
    path = tmp_path / first.rows[0].setting.folder / "features.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    again = quick(normal(60, 4, 3), directory=tmp_path)
    assert again.rows == first.rows


def test_fits_made_otherwise_are_refused_by_name(tmp_path):
    quick(normal(60, 4, 3), directory=tmp_path)
    with pytest.raises(StoreError, match=r"holds a fit that was made otherwise: fit .*'steps': 5.*another directory="):
        quick(normal(60, 4, 3), directory=tmp_path, steps=5)
    with pytest.raises(StoreError, match="harvested from something else"):
        quick(normal(60, 4, 3, seed=1), directory=tmp_path)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError, match=r"made otherwise: gradients .*another directory="):
        quick(normal(60, 4, 3, seed=1), directory=tmp_path)


def test_ctrl_c_in_a_fit_ends_the_sweep_with_what_is_finished(tmp_path, monkeypatch):
    fitted = Decomposition.fitted

    def cut_short(run):
        features = fitted(run)
        is_second = run.request.n_features == 5
        return dataclasses.replace(features, config={**features.config, "steps_done": 2}) if is_second else features

    monkeypatch.setattr(Decomposition, "fitted", cut_short)
    found = quick(normal(60, 4, 3), directory=tmp_path)
    assert [row.setting.n_features for row in found.rows] == [3]
    assert "Interrupted after 1 of 2 fits" in repr(found)
    assert not (tmp_path / "n_features-5-rank-1-l0-1-seed-0").exists()
    with pytest.raises(KeyboardInterrupt):
        quick(normal(60, 4, 3), n_features=5)


def test_a_store_of_your_own_serves_and_your_own_divergence_is_given_again(tmp_path):
    def distance(output, reference):
        return (2 * output - reference).sum(-1)

    inputs = normal(60, 4, 3)
    call = {"divergence": distance, "n_samples": 60, "progress": False}
    store = pf.harvest(Given(4, 3), "weight", inputs=inputs, directory=tmp_path / "own", reference="mean", **call)
    call = {"store": store, "n_features": 3, "l0": 1, "fit": QUICK, "progress": False, "directory": tmp_path / "fits"}
    with pytest.raises(SettingError, match=r"your own divergence="):
        pf.sweep(Given(4, 3), **call)
    rows = [pf.sweep(Given(4, 3), divergence=distance, **call).rows for _ in range(2)]
    assert rows[0] == rows[1]


def test_refusals_come_before_the_harvest(monkeypatch):
    monkeypatch.setattr(run, "harvest_to_disk", lambda *_, **__: pytest.fail("harvested"))
    inputs = normal(60, 4, 3)
    with pytest.raises(RankError, match=r"rank=4 lies outside 1 to 3"):
        quick(inputs, rank=[1, 4])
    with pytest.raises(SettingError, match=r"l0=\[\] is empty. Give one number or several, such as l0=\[2, 5, 10\]"):
        quick(inputs, l0=[])
    with pytest.raises(FeatureCountError, match=r"The least l0=6 exceeds the largest n_features=5"):
        quick(inputs, l0=[6, 7])
    with pytest.raises(FeatureCountError, match=r"n_features holds 0"):
        quick(inputs, n_features=[0, 3])
    with pytest.raises(SettingError, match=r"within=1 must lie in \[0, 1\)"):
        pf.SweepSettings(within=1)
    with pytest.raises(SettingError, match=r"top_share=0 must lie in \(0, 1\]"):
        pf.SweepSettings(top_share=0)


def test_more_features_than_samples_are_refused_before_the_first_fit(monkeypatch):
    monkeypatch.setattr(Decomposition, "fitted", lambda _: pytest.fail("fitted"))
    with pytest.raises(SampleCountError, match=r"fewer than the 70 features"):
        quick(normal(60, 4, 3), n_features=[3, 70])


def test_the_rank_is_that_of_the_fit_where_none_is_given():
    of_rank_2 = dataclasses.replace(QUICK, rank=2)
    assert [row.setting.rank for row in quick(normal(60, 4, 3), fit=of_rank_2, n_features=3).rows] == [2]
    assert [row.setting.rank for row in quick(normal(60, 4, 3), fit=of_rank_2, n_features=3, rank=1).rows] == [1]


def test_an_l0_above_a_number_of_features_is_left_out_there():
    found = quick(normal(60, 4, 3), n_features=[2, 4], l0=[1, 3])
    assert [row.setting[:3] for row in found.rows] == [(2, 1, 1), (4, 1, 1), (4, 1, 3)]


def test_of_the_hessian_method_under_training_is_not_judged(tiny_hooked, tiny_tokens):
    fit = pf.HessianSettings(steps=2, batch_size=2)
    call = {"method": "hessian", "n_features": 3, "l0": 1, "fit": fit, "n_samples": 60, "progress": False}
    (row,) = pf.sweep(tiny_hooked, "blocks.0.attn.W_K", tiny_tokens, **call).rows
    assert row.fall is None
    assert "under-trained" not in row.flags
