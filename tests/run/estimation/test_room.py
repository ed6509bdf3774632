"""What cannot fit is refused with what to set."""

import warnings
from dataclasses import replace
from importlib import import_module

import pytest
import torch

import param_features as pf
from param_features.errors import MemoryEstimateError, Notice
from param_features.gradients import Harvester, SampleProbe
from param_features.machine import free_bytes, held_bytes
from param_features.problem import ModelInputs, Reference
from param_features.run.estimation.room import fit_in_room
from tests.run.estimation.test_sizes import DENSE, THIN, sizes_of

SIZES = import_module("param_features.run.estimation.sizes")  # `param_features.run.estimation` is the function
CALL = {"params": "blocks.1.attn.W_K", "n_features": 20, "n_samples": 1000, "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def demo():
    return pf.demo.load_model(), pf.demo.tokens(100)


def test_a_batch_left_open_is_halved_until_it_fits():
    sizes = sizes_of(THIN, 200, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_in_room(sizes, sizes.peak_bytes, is_batch_open=True) == sizes.fit
    with pytest.warns(Notice, match=r"batch_size=\d+ for the fit") as said:
        found = fit_in_room(sizes, sizes.peak_bytes * 2 // 3, is_batch_open=True)
    assert found.batch_size in (128, 256, 512) and f"batch_size={found.batch_size} " in str(said[0].message)


def test_a_batch_that_was_given_is_refused_with_one_that_fits():
    sizes = sizes_of(THIN, 200, 8)
    with pytest.raises(MemoryEstimateError, match=r"200 features of rank 8.*'fit'.*batch_size=\d+") as error:
        fit_in_room(sizes, sizes.peak_bytes * 2 // 3)
    assert "n_features=" in str(error.value)


def test_too_many_gradients_are_to_go_to_the_disk():
    with pytest.raises(MemoryEstimateError, match=r"n_samples=[\d_]+ or .*store=pf\.harvest\(…, directory=…\)"):
        fit_in_room(sizes_of(DENSE, 20, 1, n_train=10**7), 4 * 2**30)


def test_what_no_single_setting_helps_says_so():
    with pytest.raises(MemoryEstimateError, match="fewer features, a lower rank and fewer samples"):
        fit_in_room(sizes_of(DENSE, 20, 1), 1000)


def test_decompose_refuses_before_the_harvest(demo, monkeypatch):
    model, tokens = demo
    monkeypatch.setattr("param_features.run.from_gradients.free_bytes", lambda _: 20 * 2**20)
    with pytest.raises(MemoryEstimateError, match="20 features of rank 1 from 1,0.. samples"):
        pf.decompose(model, tokens=tokens, fit=pf.FitSettings(), **CALL)


def test_decompose_takes_a_smaller_batch_and_records_it(demo, monkeypatch):
    model, tokens = demo
    monkeypatch.setattr(SIZES, "control_bytes", lambda *_, **__: 0)  # so that the batch matters
    monkeypatch.setattr("param_features.run.from_gradients.free_bytes", lambda _: 38 * 10**6)
    features = pf.decompose(model, tokens=tokens, **CALL)
    assert features.config["fit"]["batch_size"] == 128
    of_rank_2 = pf.decompose(model, tokens=tokens, fit=pf.FitSettings(rank=2), **CALL)
    assert of_rank_2.config["rank"] == 2 and of_rank_2.config["fit"]["batch_size"] < 1024
    with pytest.raises(MemoryEstimateError, match="batch_size=[0-9]+"):
        pf.decompose(model, tokens=tokens, fit=pf.FitSettings(batch_size=1023), **CALL)


def test_memory_is_known_here():
    device = torch.device("cpu")
    assert 2**20 < held_bytes(device) < free_bytes(device) + 2**40 and free_bytes(device) > 2**20


def test_batches_of_whole_outputs_over_a_large_vocabulary_are_small(tiny_features, tiny_tokens, monkeypatch):
    engine, inputs = tiny_features.engine, ModelInputs((tiny_tokens,), {})
    monkeypatch.setattr("param_features.gradients.harvester._MOST_OUTPUTS", 4 * tiny_tokens.shape[1] * 20)  # of 20 tokens
    sizes = []
    for through_head in (True, False):
        routes = replace(engine.routes, through_head=through_head)
        probe = SampleProbe(replace(engine, routes=routes), inputs)
        harvester = Harvester(probe, tiny_features.divergence, Reference("sample"), pf.HarvestSettings())
        sizes.append(max(map(len, harvester.batches(inputs, 2))))
    assert sizes == [len(tiny_tokens), 4]
