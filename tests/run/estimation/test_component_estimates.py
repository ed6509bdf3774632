"""What a fit of components takes: estimates before the run, and the refusal of what does not fit."""

import pytest
import torch

import param_features as pf
from param_features.errors import MemoryEstimateError, SettingError
from param_features.run.estimation import component_sizes
from param_features.run.estimation.component_sizes import StepProbe
from param_features.run.estimation.live import LiveBytes
from tests.models import hooked_transformer, integers

CALL = {"params": ["blocks.0.attn.W_Q", "blocks.0.mlp.W_in"], "tokens": integers(20, 60, 10), "method": "components"}
VPD = {"fit": {"adversarial_weight": 0.5, "batch_size": 200, "importance": "site"}, "steps": 50}


@pytest.fixture(scope="module")
def model():
    return hooked_transformer(dtype=torch.float32)


@pytest.fixture(scope="module")
def told(model):
    return pf.estimate(model, **CALL, **VPD)


def test_every_stage_has_its_share_and_the_table_names_checkpoints(told):
    assert set(told.seconds) == {"setup", "fit", "measure"} and all(seconds > 0 for seconds in told.seconds.values())
    assert (told.sizes.n_train, told.sizes.n_held_out, told.sizes.n_rows) == (540, 60, 20)
    assert "of two checkpoints, where they are kept" in repr(told) and "does not fit" not in repr(told)
    assert told.fits() == {}


def test_memory_is_that_of_a_step_of_all_rows(monkeypatch, model, told):
    probes = []
    monkeypatch.setattr(component_sizes, "free_bytes", lambda _: probes.append(None) or 2**40)
    seen = StepProbe.sizes.func
    monkeypatch.setattr(StepProbe.sizes, "func", lambda probe: probes.append(probe) or seen(probe))
    pf.decompose(model, **CALL, n_features=2, fit="vpd", steps=1, progress=False)
    assert len(probes) == 2  # asked once, and compared with what is free
    probe = probes[0]
    probe.step(20)
    with LiveBytes() as live:
        probe.trainer.take_rows(20)
        probe.step(20)
        probe.step(20)
    sizes = seen(probe)
    weights = sum(4 * tensor.numel() for tensor in probe.trainer.optimizer.param_groups[0]["params"])
    assert sizes.fixed_bytes + 20 * sizes.row_bytes == pytest.approx(live.peak + 3 * weights, rel=0.05)


def test_what_does_not_fit_is_refused_with_the_batch_that_would(monkeypatch, model, told):
    peak = told.sizes.peak_bytes
    room = int(told.sizes.fixed_bytes + 6.5 * told.sizes.row_bytes)
    assert peak > room and told.sizes.within(room) == {"batch_size": 60} and told.sizes.within(peak) == {}
    monkeypatch.setattr(component_sizes, "free_bytes", lambda _: room)
    with pytest.raises(MemoryEstimateError, match=r"20 rows of 10 positions .*fit=pf.ComponentSettings\(batch_size=60\)"):
        pf.decompose(model, **CALL, **VPD, progress=False)
    monkeypatch.setattr(component_sizes, "free_bytes", lambda _: 1000)
    with pytest.raises(MemoryEstimateError, match="Take fewer components or matrices"):
        pf.decompose(model, **CALL, **VPD, progress=False)


def test_other_methods_are_refused(model):
    with pytest.raises(SettingError, match="pf.estimate is for 'l3d' and 'components'"):
        pf.estimate(model, **CALL | {"method": "hessian"})
