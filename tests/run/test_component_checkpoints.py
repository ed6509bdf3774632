"""A fit of components that was stopped anywhere goes on to the bits of an unbroken one, and never from anything else."""

import signal

import pytest
import torch
from safetensors.torch import load_file

import param_features as pf
from param_features.errors import StoreError
from param_features.fit.components import ComponentTrainer
from tests.models import hooked_transformer, integers
from tests.stops import hearing_interrupts, stopped_after

NAMES = ["blocks.0.attn.W_Q", "blocks.0.mlp.W_in"]
TOKENS = integers(20, 20, 6)
pytestmark = pytest.mark.usefixtures("few_metrics")


@pytest.fixture(scope="module")
def model():
    return hooked_transformer(dtype=torch.float32)


def fitted(model, folder=None, **changes):
    call = {"params": NAMES, "tokens": TOKENS, "n_features": 3, "steps": 6, "fit": {"batch_size": 30}, "progress": False}
    checkpoints = None if folder is None else pf.CheckpointSettings(folder, every=0)
    return pf.decompose(model, method="components", checkpoints=checkpoints, **call | changes)


def numbers(found):
    parts = found.dictionary.parts
    sides = [side for part in parts.values() for side in (part.U, part.V)]
    return [*sides, *found.dictionary.net.parameters()], dict(found.metrics), found.config["history"]


def assert_same(one, other):
    (tensors, *records), (others, *other_records) = numbers(one), numbers(other)
    assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))
    assert records == other_records


FITS = {"stochastic": {"batch_size": 30}, "adversary": "vpd", "one at a time": "spd"}


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_that_was_stopped_goes_on_to_the_same_bits(model, tmp_path, kind):
    case = {"fit": FITS[kind]}
    for n_steps in (0, 2):
        with stopped_after(n_steps, ComponentTrainer), pytest.raises(RuntimeError, match="stopped here"):
            fitted(model, tmp_path, **case)
    unbroken = fitted(model, **case)
    assert_same(fitted(model, tmp_path, **case), unbroken)
    assert int(load_file(tmp_path / "fit.safetensors")["n_steps"]) == 6
    with stopped_after(0, ComponentTrainer):
        assert_same(fitted(model, tmp_path, **case), unbroken)


@pytest.fixture(scope="module")
def begun(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch, stopped_after(2, ComponentTrainer):
        patch.setattr("param_features.run.decomposition.check_room", lambda _: None)
        with pytest.raises(RuntimeError, match="stopped here"):
            fitted(model, folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_features": {"*.W_Q": 3, "*.W_in": 4}}, r"n_components= .*4.*, there .*3"),
        ({"fit": {"batch_size": 24}}, r"fit.batch_size= 24, there 30"),
        ({"seed": 1}, r"fit: seed= 1, there 0\. Give"),
        ({"params": NAMES[0]}, r"params= chooses blocks.0.attn.W_Q, there"),
        ({"tokens": TOKENS.flip(0)}, r"tokens= \(or inputs=\)"),
        ({"n_samples": 60}, r"n_samples= 60, there None"),
        ({"positions": "last"}, r"positions= 'last', there None"),
        ({"method": "l3d", "fit": None}, r"another fit: method= 'l3d', there 'components'; n_features= 3, there 6\. Give"),
    ],
)
def test_a_fit_of_something_else_is_refused_by_name(model, begun, changes, match):
    call = {"method": "components", "params": NAMES, "tokens": TOKENS, "n_features": 3, "steps": 6, "progress": False}
    call |= {"fit": {"batch_size": 30}, "checkpoints": begun}
    with pytest.raises(StoreError, match=match):
        pf.decompose(model, **call | changes)


def test_a_damaged_checkpoint_is_refused(model, begun, tmp_path):
    data = bytearray((begun / "fit.safetensors").read_bytes())
    data[-9] ^= 1
    (tmp_path / "fit.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match="do not match their checksum"):
        fitted(model, tmp_path)


def test_an_interrupt_keeps_what_is_learned_and_a_checkpoint(model, tmp_path):
    with hearing_interrupts(), stopped_after(3, ComponentTrainer, stop=lambda: signal.raise_signal(signal.SIGINT)):
        assert fitted(model, tmp_path).config["steps_done"] == 4
    assert_same(fitted(model, tmp_path), fitted(model))
