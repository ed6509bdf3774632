"""The table of components of a trained model: fitted once, interrupted, read again; seeds compared."""

import argparse

import pytest
import torch

from benchmarks.components_real import Job, agreement_rows, job_of, matrices_of, matrix_rows, metric_rows, seed_pairs
from param_features.fit.components import ComponentSettings
from tests.models import hooked_transformer

CALL = {
    "n_features": 6,
    "fit": ComponentSettings(steps=3, batch_size=60, start="random"),
    "progress": False,
}


@pytest.fixture(scope="module")
def job(tmp_path_factory, tiny_hooked, tiny_tokens):
    params = matrices_of(tiny_hooked, "1")[-2:]
    return Job(tiny_hooked, tiny_tokens, params, CALL, tmp_path_factory.mktemp("fits"))


@pytest.fixture(scope="module")
def fits(job):
    return [job.fitted(seed) for seed in (0, 1)]


def test_fits_are_kept_and_read_again(job, fits, monkeypatch):
    monkeypatch.setattr("benchmarks.components_real.pf.decompose", lambda *_, **__: pytest.fail("fitted again"))
    again = job.fitted(0)
    assert dict(again.metrics) == dict(fits[0].metrics)
    name = job.params[0]
    assert torch.equal(again.dictionary.parts[name].U, fits[0].dictionary.parts[name].U)


def test_tables_have_every_number_and_the_controls(job, fits):
    metrics = [fit.metrics for fit in fits]
    rows = {(row.case, row.number): row for row in metric_rows(metrics)}
    assert rows["components", "KL, rounded"].values == tuple(of["rounded"] for of in metrics)
    assert rows["components", "loss, unmasked"].aim.startswith("<= ")
    assert rows["components", "KL, adversarial_20"].n_met is not None
    assert rows["svd_w", "KL, rounded"].values == tuple(of["control_svd_w"] for of in metrics)
    assert rows["svd_w", "KL, adversarial_20"].values == tuple(of["adversarial_20_control_svd_w"] for of in metrics)
    assert {case for case, _ in rows} == {"components", "svd_w", "neurons", "rotated", "shuffled"}
    assert [row.case for row in matrix_rows(metrics, job.params)[::2]] == job.params


def test_seeds_agree_with_themselves_and_not_with_each_other(fits):
    same, other = next(seed_pairs([fits[0], fits[0]])), next(seed_pairs(fits))
    assert same.matched == pytest.approx(1) and other.matched < 0.9
    assert agreement_rows([same, other])[0].n_met in (1, 2)


def test_options_become_a_job(tmp_path):
    options = argparse.Namespace(
        model="demo", blocks="all", n_components=7, preset="vpd", steps=9, set=["lr=0.01", "clip=None"], save=tmp_path
    )
    pytest.importorskip("transformer_lens")
    job = job_of(options)
    settings = job.call["fit"]
    assert (settings.steps, settings.lr, settings.clip, settings.importance) == (9, 0.01, None, "model")
    assert len(job.params) > 6 and job.call["n_features"] == 7


def test_matrices_are_those_of_attention_and_mlp():
    model = hooked_transformer(n_layers=1)
    names = ["attn.W_Q", "attn.W_O", "attn.W_K", "attn.W_V", "mlp.W_in", "mlp.W_out"]
    assert sorted(matrices_of(model, "0")) == sorted(f"blocks.0.{name}" for name in names)
    assert matrices_of(model, "5") == []
