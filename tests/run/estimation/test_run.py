"""`pf.estimate` on the demo model."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import param_features as pf
from param_features.errors import SettingError, UnknownParameterError

CALL = {"params": "blocks.1.attn.W_K", "n_features": 20, "n_samples": 400, "steps": 4}
SCRIPT = """
import json, re, torch
from pathlib import Path
import param_features as pf
torch.set_num_threads(1)
model, tokens = pf.demo.load_model(), pf.demo.tokens(400)
call = {"params": "blocks.2.mlp.W_in", "n_features": 60, "n_samples": 3000, "steps": 12}
if WHAT == "estimate":
    told = pf.estimate(model, tokens=tokens, **call)
    print(json.dumps(told.total_peak_bytes))
else:
    pf.decompose(model, tokens=tokens, progress=False, **call)
    status = Path("/proc/self/status").read_text()  # getrusage counts what the parent held at the fork
    print(json.dumps(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024))
"""


@pytest.fixture(scope="module")
def demo():
    return pf.demo.load_model(), pf.demo.tokens(100)


@pytest.fixture(scope="module")
def told(demo):
    return pf.estimate(demo[0], tokens=demo[1], **CALL)


def test_every_stage_has_its_share(told):
    assert set(told.seconds) == {"setup", "harvest", "fit", "measure"} and all(s > 0 for s in told.seconds.values())
    assert told.total_seconds == pytest.approx(sum(told.seconds.values()))
    assert told.peak_bytes == max(told.memory.values()) and told.total_peak_bytes == told.base_bytes + told.peak_bytes


def test_samples_are_those_of_the_run(demo, told):
    features = pf.decompose(demo[0], tokens=demo[1], progress=False, **CALL)
    metrics = features.metrics
    assert (told.sizes.n_train, told.sizes.n_held_out) == (metrics["n_samples"], metrics["n_held_out"])


def test_it_prints_as_a_table_that_names_what_bounds_it(told):
    text = repr(told)
    assert [line.split("  ")[0] for line in text.splitlines()] == ["time", "memory", "disk", "bound by"]
    assert f"{told.n_samples:,} gradients" in text and told.sizes.largest in text


def test_what_does_not_fit_says_so(told):
    assert told.fits() == {} and told.fits(1000) == {} and "does not fit" not in repr(told)
    small = replace(told, free_bytes=told.touched_bytes + 2**20)
    assert repr(small).splitlines()[-1].startswith("does not fit")


def test_the_model_and_the_random_state_are_as_before(demo):
    model, tokens = demo
    model.train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    pf.estimate(model, tokens=tokens, **CALL)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert flags == [parameter.requires_grad for parameter in model.parameters()]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    model.eval()


@pytest.mark.parametrize("more", [{"fit": pf.FitSettings(format="tucker", rank=2)}, {"fit": pf.FitSettings(selection="l1")}])
def test_other_formats_and_selections(demo, more):
    assert pf.estimate(demo[0], tokens=demo[1], **CALL, **more).total_seconds > 0


def test_plain_modules(classifier, images):
    found = pf.estimate(classifier, "*weight", inputs=images, n_features=4, steps=4)
    assert found.n_samples == len(images)


def test_pairs(tiny_hooked, tiny_tokens):
    pairs = pf.Pairs(tiny_tokens, tiny_tokens.flip(0))
    found = pf.estimate(tiny_hooked, "blocks.0.attn.W_K", reference=pairs, n_features=4, steps=4)
    assert found.n_samples == len(tiny_tokens)


def test_wrong_arguments_are_refused(demo):
    with pytest.raises(UnknownParameterError, match="nearest"):
        pf.estimate(demo[0], "blocks.1.attn.W_KK", demo[1])
    with pytest.raises(SettingError, match="for method='l3d'"):
        pf.estimate(demo[0], "blocks.1.attn.W_K", demo[1], fit=pf.HessianSettings())


@pytest.mark.release
def test_the_peak_of_a_process_is_within_a_factor_of_one_and_a_half():
    peaks = [_in_process(what) for what in ("estimate", "truth")]
    assert peaks[1] / 1.5 < peaks[0] < peaks[1] * 1.5


def _in_process(what: str) -> int:
    done = subprocess.run([sys.executable, "-c", f"WHAT = {what!r}\n{SCRIPT}"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])
