"""A fit's checkpoints: it goes on to the same bits wherever it was stopped, and never from a file that is not whole."""

import json
import signal
import threading
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from param_features.errors import StoreError
from param_features.fit import Checkpoints, Fit, FitRequest, FitSettings, OffTarget, checkpoint, checkpointing, fit_l3d
from param_features.fit.checkpoint import restore, state_of
from param_features.fit.formats import FORMATS
from param_features.fit.training import Trainer
from tests.fit.test_fitting import planted_store
from tests.stops import stopped_after

STEPS = 24
RECIPE = {"method": "l3d", "fit.steps": STEPS}


@pytest.fixture(scope="module")
def store():
    return planted_store(300, seed=1)


def fitted(store, path: Path | None = None, *, every: float = 0, recipe=RECIPE, off_target=None, **changes) -> Fit:
    """A fit that is kept at a path."""
    kept = None if path is None else Checkpoints(path, recipe, every)
    format, rank = FORMATS[changes.pop("format", "matrix")], changes.pop("rank", 1)
    settings = FitSettings(**{"steps": STEPS, "batch_size": 64, **changes})
    request, generator = FitRequest(14, rank, 1.5, settings, format), torch.Generator().manual_seed(0)
    return fit_l3d(store, request, generator=generator, progress=False, off_target=off_target, checkpoints=kept)


def assert_same(one: Fit, other: Fit) -> None:
    ours, theirs = one.dictionary, other.dictionary
    for a, b in ((ours.v_in, theirs.v_in), (ours.v_out, theirs.v_out)):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))
    assert (ours.threshold, one.steps_done) == (theirs.threshold, other.steps_done)


@pytest.fixture(scope="module")
def unbroken(store):
    return fitted(store)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.safetensors"


@pytest.fixture
def begun(store, path):
    """A fit that was stopped within its tenth step."""
    with stopped_after(9), pytest.raises(RuntimeError, match="stopped here"):
        fitted(store, path)
    return path


def before(path: Path) -> Path:
    return path.with_name("fit.before.safetensors")


def n_steps_in(path: Path) -> int:
    return int(load_file(path)["n_steps"])


CASES = {
    "pursuit": {},
    "top_k": {"selection": "top_k", "dead_after": 3},
    "l1": {"selection": "l1", "l1": 0.1},
    "cp": {"format": "cp"},
    "tucker": {"format": "tucker", "rank": 2},
    "no restarts": {"resample": 0},
    "a batch larger than the data": {"batch_size": 500},
    "beside a background": {"off_target": OffTarget(planted_store(100, seed=5), 3.0)},
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_fit_stopped_within_random_steps_goes_on_to_the_same_bits(store, path, case):
    expected, rng, n_calls, left = fitted(store, **case), Random(0), 0, STEPS
    while left > 1:
        n_whole = rng.randint(0, min(5, left - 1))
        with stopped_after(n_whole), pytest.raises(RuntimeError, match="stopped here"):
            fitted(store, path, **case)
        left, n_calls = left - n_whole, n_calls + 1
        assert n_steps_in(path) == STEPS - left
    assert n_calls > 3
    assert_same(fitted(store, path, **case), expected)


def test_a_finished_fit_takes_no_step(store, path, unbroken):
    assert_same(fitted(store, path), unbroken)
    with stopped_after(0):
        assert_same(fitted(store, path), unbroken)


def test_between_checkpoints_steps_are_taken_again(store, path, unbroken, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(checkpointing.time, "monotonic", lambda: next(clock))
    with stopped_after(17), pytest.raises(RuntimeError, match="stopped here"):
        fitted(store, path, every=5)
    assert 0 < n_steps_in(before(path)) < n_steps_in(path) < 17
    assert_same(fitted(store, path, every=5), unbroken)


def test_every_tensor_of_the_state_is_needed(store, unbroken):
    """Left out of a restored state, each one changes the result: nothing is kept for show."""

    def trainer():
        settings = FitSettings(steps=STEPS, batch_size=64, selection="top_k", dead_after=2)
        return Trainer(store, FitRequest(14, 1, 1.5, settings), torch.Generator().manual_seed(0))

    def ended(one: Trainer) -> Fit:
        while one.n_steps < STEPS:
            one.step()
        return one.result()

    whole = trainer()
    for _ in range(9):
        whole.step()
    state = {name: tensor.detach().clone() for name, tensor in state_of(whole).items()}
    expected, fresh = ended(whole), state_of(trainer())
    for name in state:
        other = trainer()
        restore(other, state | {name: fresh.get(name, torch.zeros_like(state[name]))})
        found = ended(other)
        same = found.errors == expected.errors and all(
            map(torch.equal, found.dictionary.v_out.tensors, expected.dictionary.v_out.tensors)
        )
        assert not same, f"{name} is kept but plays no part"
    other = trainer()
    restore(other, state)
    assert_same(ended(other), expected)


def test_a_state_of_other_tensors_is_refused(store):
    def trainer(n_features):
        return Trainer(store, FitRequest(n_features, 1, 2.0, FitSettings()), torch.Generator().manual_seed(0))

    with pytest.raises(StoreError, match=r"weights/0.*another version of this library"):
        restore(trainer(4), state_of(trainer(3)))


@pytest.mark.parametrize("order", [[0, -1], [3, 3], [10**6], [[0], [1]], [0.0, 1.0]])
def test_an_order_that_no_pass_over_the_samples_has_is_refused(store, order):
    trainer = Trainer(store, FitRequest(3, 1, 2.0, FitSettings()), torch.Generator().manual_seed(0))
    with pytest.raises(StoreError, match=rf"order is not one of this fit's {store.n_samples} samples"):
        restore(trainer, state_of(trainer) | {"order": torch.tensor(order)})
    restore(trainer, state_of(trainer) | {"order": torch.tensor([2, 0])})


def test_another_fit_is_refused_with_every_difference(store, begun):
    kept = begun.read_bytes()
    with pytest.raises(StoreError, match=r"is of another fit: fit.steps= 30, there 24; new= 1, there None\. Give the same"):
        fitted(store, begun, recipe=RECIPE | {"fit.steps": 30, "new": 1})
    with pytest.raises(StoreError, match=r"another fit: method= 'hessian', there 'l3d'\. Give"):
        fitted(store, begun, recipe={"method": "hessian", "fit.spread": 1})
    assert begun.read_bytes() == kept


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def edit_record(path: Path) -> None:
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {"record": metadata["record"].replace('"fit.steps": 24', '"fit.steps": 23')})


def other_format(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)


def no_json(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path, {"record": "{"})


DAMAGE = {
    cut: r"is not a safetensors file", empty: r"is not a safetensors file", flip: r"do not match their checksum",
    edit_record: r"does not match its own checksum", other_format: r"does not describe a checkpoint",
    no_json: r"is not JSON",
}  # fmt: skip


@pytest.mark.parametrize(("harm", "message"), DAMAGE.items(), ids=[harm.__name__ for harm in DAMAGE])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken_when_told(store, unbroken, begun, harm, message):
    harm(begun)
    with pytest.raises(StoreError, match=rf"fit\.safetensors .*{message}.*Remove it to go on from .*fit.before.safetensors"):
        fitted(store, begun)
    begun.unlink()
    with stopped_after(15), pytest.raises(RuntimeError, match="stopped here"):  # the one before holds 8 of 24 steps
        fitted(store, begun)
    assert_same(fitted(store, begun), unbroken)


def test_without_a_whole_checkpoint_the_fit_begins_anew_only_when_told(store, unbroken, begun):
    begun.unlink()
    flip(before(begun))
    with pytest.raises(StoreError, match=r"fit.before.safetensors .*Remove it to begin the fit anew"):
        fitted(store, begun)
    before(begun).unlink()
    assert_same(fitted(store, begun), unbroken)


def test_a_checkpoint_of_another_version_is_refused(store, begun, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", replace(checkpoint.FORMAT, versions=(2,)))
    with pytest.raises(StoreError, match=r"format version 1; this library reads version 2"):
        fitted(store, begun)


def test_a_file_holds_tensors_and_json_alone(begun):
    with safe_open(begun, "pt") as file:
        record = json.loads(file.metadata()["record"])
    assert record["recipe"] == RECIPE
    assert {"optimizer/0/exp_avg", "counters/last_kept", "generator", "order"} <= set(load_file(begun))
    assert {file.name for file in begun.parent.iterdir()} == {"fit.safetensors", "fit.before.safetensors"}


@pytest.fixture
def _ctrl_c():
    """Python's own handler, which a background shell's children lack."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def interrupting(step, n_times: int):
    """Ctrl-C within the eighth step, at its beginning; again at its end."""

    def interrupted(trainer):
        if trainer.n_steps == 7:
            signal.raise_signal(signal.SIGINT)
        seen = step(trainer)
        if trainer.n_steps == 8 and n_times == 2:
            signal.raise_signal(signal.SIGINT)
        return seen

    return interrupted


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_ends_the_step_in_hand_and_keeps_a_checkpoint(store, unbroken, path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupting(Trainer.step, 1))
        assert fitted(store, path, every=1e6).steps_done == n_steps_in(path) == 8
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(fitted(store, path, every=1e6), unbroken)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_second_ctrl_c_does_not_wait_and_leaves_the_checkpoint_before(store, unbroken, path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupting(Trainer.step, 2))
        assert fitted(store, path).steps_done == 8
    assert n_steps_in(path) == 7
    assert_same(fitted(store, path), unbroken)


@pytest.mark.usefixtures("_ctrl_c")
def test_a_handler_of_the_users_own_is_left_alone_and_other_threads_have_none(store, unbroken, tmp_path):
    handler, found = signal.getsignal(signal.SIGINT), []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "step", interrupting(Trainer.step, 2))
            assert_same(fitted(store, tmp_path / "one.safetensors"), unbroken)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, handler)
    thread = threading.Thread(target=lambda: found.append(fitted(store, tmp_path / "two.safetensors")))
    thread.start()
    thread.join()
    assert_same(found[0], unbroken)


def test_a_fit_without_a_path_keeps_nothing(store, unbroken, monkeypatch):
    monkeypatch.setattr(checkpointing, "write_checkpoint", lambda *_: pytest.fail("a checkpoint was kept"))
    assert_same(fitted(store), unbroken)
