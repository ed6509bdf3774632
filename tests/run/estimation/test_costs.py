"""The estimate follows the numbers that the stages themselves go by: none of them stands twice."""

from dataclasses import replace
from importlib import import_module

import pytest

import param_features as pf
from param_features.problem import read_model, read_problem
from param_features.run.estimation import estimating
from tests.run.estimation.test_sizes import DENSE, FACTORED, THIN, WIDE, sizes_of

TOP_K = pf.FitSettings(selection="top_k")
CASES = [
    ("start", "fit.loop._LARGE", 1, (THIN, 50, 1)),
    ("start", "fit.loop._DENSE_NUMBERS", 2**13, (DENSE, 100, 1)),
    ("fit", "fit.training._COPIES", 20, (DENSE, 100, 1)),
    ("fit", "fit.training._RESTART_BATCHES", 1, (THIN, 200, 1)),
    ("fit", "fit.training._RESTART_BYTES", 2**10, (WIDE, 2, 1)),
    ("fit", "gradients.types._MOST_NUMBERS", 1, (FACTORED, 100, 4)),
    ("ranking", "fit.encoder._MOST_NUMBERS", 1, (THIN, 200, 1)),
    ("ranking", "fit.encoder._PIECE", 2**14, (THIN, 200, 1)),
    ("ranking", "fit.pursuit._SOME", 2**14, (THIN, 200, 1)),
    ("ranking", "fit.pursuit._TRIANGLES", 10, (THIN, 200, 1)),
    ("ranking", "fit.dictionary.MOST_OVERLAPS", 2**15, (THIN, 200, 1)),
    ("ranking", "gradients.store.CHUNK_BYTES", 2**12, (FACTORED, 20, 1)),
    ("controls", "fit.dictionary.MOST_OVERLAPS", 2**10, (THIN, 1000, 1)),
    ("controls", "measure.controls._EXACT_UP_TO", 1, (THIN, 50, 1)),
    ("controls", "measure.controls._DENSE_NUMBERS", 1, (WIDE, 50, 1)),
    ("controls", "measure.controls._CHUNK_NUMBERS", 2**10, (FACTORED, 50, 1)),
]
SMALL = {
    "measure.controls._DENSE_NUMBERS": 1,
    "measure.controls._CHUNK_NUMBERS": 1,
    "measure.principal._SLICE_NUMBERS": 1,
    "measure.principal._CHUNK_NUMBERS": 1,
    "measure.principal._MOST_WEIGHTS": 1,
}
"""With these, controls take the way by slices, and no one number covers another."""


def patch(monkeypatch, name: str, value: float) -> None:
    module, _, constant = name.rpartition(".")
    monkeypatch.setattr(import_module(f"param_features.{module}"), constant, value)


@pytest.mark.parametrize(("stage", "name", "value", "case"), CASES, ids=[f"{stage}-{name}" for stage, name, *_ in CASES])
def test_a_stage_follows_the_numbers_of_its_code(monkeypatch, stage, name, value, case):
    sizes = replace(sizes_of(*case, n_train=20_000), is_stored=True)
    if name in ("fit.encoder._PIECE", "fit.pursuit._SOME"):  # where all samples' triangles are too many to keep
        patch(monkeypatch, "fit.encoder._MOST_NUMBERS", 2**20)
    before = sizes.stages[stage]
    patch(monkeypatch, name, value)
    after = replace(sizes).stages[stage]
    assert after != before


@pytest.mark.parametrize(
    ("constant", "value"),
    [("_SLICE_NUMBERS", 2**30), ("_CHUNK_NUMBERS", 2**30), ("_MOST_WEIGHTS", 2**27), ("_PROBES", 2), ("_MOST_PROBES", 1)],
)
def test_controls_by_slices_follow_the_numbers_of_their_code(monkeypatch, constant, value):
    for name, small in SMALL.items():
        patch(monkeypatch, name, small)
    sizes = replace(sizes_of(WIDE, 50, 1, n_train=20_000), is_stored=True)
    before = sizes.stages["controls"]
    patch(monkeypatch, f"measure.principal.{constant}", value)
    assert replace(sizes).stages["controls"] != before


def test_a_batch_follows_how_many_outputs_exist_together(monkeypatch, tiny_hooked, tiny_tokens):
    chosen = read_model(tiny_hooked, "blocks.0.attn.W_K", tokenizer=None, output=None)
    problem = read_problem(chosen, tiny_tokens, None, divergence="auto", reference="sample")

    def batch_bytes() -> int:
        settings = pf.HarvestSettings(n_samples=8 * len(tiny_tokens))
        return estimating._harvest_probe(problem, settings, n_features=4, seed=0).batch_bytes

    before = batch_bytes()
    patch(monkeypatch, "gradients.engine.MOST_LOGITS", 40)
    assert batch_bytes() < before
