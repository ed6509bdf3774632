"""A decomposition that was stopped anywhere goes on to the bits of an unbroken one, and never from anything else."""

import errno
import json
import os
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import param_features as pf
from param_features.errors import DiskFullError, SampleCountError, SettingError, StoreError
from param_features.fit import FitSettings
from param_features.fit.hessian import HessianTrainer
from param_features.fit.training import Trainer
from param_features.run import resuming
from tests.kills import unbroken_and_killed
from tests.stops import STOPPED, failing_at, stopped_after

W_K = "blocks.0.attn.W_K"
QUICK = {
    "n_features": 6, "l0": 2, "steps": 12, "progress": False, "n_samples": 200, "harvest": pf.HarvestSettings(batch_size=4),
}  # fmt: skip
TITLES = {"fit", "fit-target", "fit-background"}


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "SHARD_MIB", 0.05)
        yield


def fitted(model, tokens, folder=None, **changes) -> pf.ParamFeatures:
    checkpoints = None if folder is None else pf.CheckpointSettings(folder, every=0)
    return pf.decompose(model, **{"params": W_K, "tokens": tokens, "checkpoints": checkpoints, **QUICK, **changes})


def assert_same(one: pf.ParamFeatures, other: pf.ParamFeatures) -> None:
    for a, b in ((one.v_in, other.v_in), (one.v_out, other.v_out)):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))
    assert dict(one.metrics) == dict(other.metrics)
    assert one.threshold == other.threshold
    assert one.config["steps_done"] == other.config["steps_done"]
    assert torch.equal(one.references, other.references)
    assert torch.equal(one.examples.tensors[0], other.examples.tensors[0])


def with_stops(model, tokens, folder, stops, kind=Trainer, **case) -> pf.ParamFeatures:
    """The features of as many calls as it takes, each but the last stopped after so many steps of its own."""
    for n_steps in stops:
        with stopped_after(n_steps, kind), pytest.raises(RuntimeError, match="stopped here"):
            fitted(model, tokens, folder, **case)
    return fitted(model, tokens, folder, **case)


@pytest.fixture(scope="module")
def unbroken(tiny_hooked, tiny_tokens):
    return fitted(tiny_hooked, tiny_tokens)


def n_steps_in(path: Path) -> int:
    return int(load_file(path)["n_steps"])


def test_checkpoints_change_nothing_and_a_finished_fit_takes_no_step(tiny_hooked, tiny_tokens, unbroken, tmp_path):
    assert_same(fitted(tiny_hooked, tiny_tokens, tmp_path), unbroken)
    assert n_steps_in(tmp_path / "fit.safetensors") == 12
    with stopped_after(0):
        assert_same(fitted(tiny_hooked, tiny_tokens, tmp_path), unbroken)


def test_two_parameters_and_a_fixed_reference_go_on_to_the_same_bits(tiny_hooked, tiny_tokens, tmp_path):
    case = {"reference": "mean", "params": [W_K, "blocks.1.mlp.b_in"], "fit": FitSettings(batch_size=70)}
    found = with_stops(tiny_hooked, tiny_tokens, tmp_path, [0, 6, 3], **case)
    assert n_steps_in(tmp_path / "fit.safetensors") == 12
    assert_same(found, fitted(tiny_hooked, tiny_tokens, **case))


def test_the_hessian_method_goes_on_to_the_same_bits(tiny_hooked, tiny_tokens, tmp_path):
    case = {"method": "hessian", "steps": 5, "fit": pf.HessianSettings(batch_size=30)}
    found = with_stops(tiny_hooked, tiny_tokens, tmp_path, [0, 3], HessianTrainer, **case)
    assert_same(found, fitted(tiny_hooked, tiny_tokens, **case))


def test_all_fits_beside_a_background_go_on_to_the_same_bits(tiny_hooked, tiny_tokens, tmp_path):
    case = {"background": tiny_tokens[:20].flip(1)}
    found = with_stops(tiny_hooked, tiny_tokens, tmp_path, [5, 9, 10, 8], **case)
    assert {path.stem for path in tmp_path.glob("*.safetensors") if ".before" not in path.name} == TITLES
    assert_same(found, fitted(tiny_hooked, tiny_tokens, **case))


def test_a_harvest_stopped_within_shards_goes_on_to_the_same_bits(tiny_hooked, tiny_tokens, unbroken, tmp_path):
    for n_writes in (0, 7, 33):
        with failing_at(n_writes, STOPPED), pytest.raises(RuntimeError, match="stopped here"):
            fitted(tiny_hooked, tiny_tokens, tmp_path)
    assert len(list((tmp_path / "gradients").glob("train*"))) > 1
    assert not list((tmp_path / "gradients").glob("held_out*"))
    assert_same(fitted(tiny_hooked, tiny_tokens, tmp_path), unbroken)


def test_a_given_store_is_left_where_it_is_and_fitted_from_the_disk(tiny_hooked, tiny_tokens, unbroken, tmp_path):
    store = pf.harvest(
        tiny_hooked, W_K, tiny_tokens, directory=tmp_path / "store", n_samples=200, settings=QUICK["harvest"], progress=False
    )
    call = {"n_samples": None, "harvest": None, "store": store}
    assert_same(with_stops(tiny_hooked, None, tmp_path / "kept", [5], **call, params=None), unbroken)
    assert not (tmp_path / "kept" / "gradients").exists()
    assert fitted(tiny_hooked, None, tmp_path / "kept", **call, params=None).config["store"]["directory"] == str(
        store.directory
    )


def test_own_gradients_are_read_into_memory_where_they_fit(tiny_hooked, tiny_tokens, unbroken, tmp_path, monkeypatch):
    seen = []
    start = Trainer.__init__

    def watched(trainer, store, *args, **kwargs):
        seen.append(type(store).__name__)
        start(trainer, store, *args, **kwargs)

    monkeypatch.setattr(Trainer, "__init__", watched)
    fitted(tiny_hooked, tiny_tokens, tmp_path)
    tight = {"harvest": replace(QUICK["harvest"], max_memory_gib=1e-6)}
    assert_same(fitted(tiny_hooked, tiny_tokens, tmp_path, **tight), unbroken)
    assert seen == ["GradientStore", "DiskGradients"]


def test_what_follows_the_fit_may_change(tiny_hooked, tiny_tokens, unbroken, tmp_path):
    fitted(tiny_hooked, tiny_tokens, tmp_path)
    with stopped_after(0):
        more = fitted(tiny_hooked, tiny_tokens, tmp_path, harvest=replace(QUICK["harvest"], n_examples=2))
    assert torch.equal(more.v_out.tensors[0], unbroken.v_out.tensors[0])
    assert len(more.examples) == 2


CHANGES = [
    ({"steps": 13}, r"fit.steps= 13, there 12"),
    ({"n_features": 7}, r"n_features= 7, there 6"),
    ({"l0": 1}, r"l0= 1.0, there 2.0"),
    ({"fit": FitSettings(lr=0.01)}, r"fit.lr= 0.01, there 0.03"),
    ({"fit": FitSettings(format="cp")}, r"format= 'cp', there 'matrix'"),
    ({"method": "hessian"}, r"another fit: method= 'hessian', there 'l3d'\. Give"),
    ({"seed": 1}, r"the seed of the gradients 1, there 0; seed= 1, there 0"),
    ({"reference": "mean"}, r"reference= 'mean', there 'sample'"),
    ({"divergence": "sum"}, r"divergence= 'sum', there 'kl'"),
    ({"params": "blocks.1.attn.W_K"}, r"params= chooses blocks.1.attn.W_K, there blocks.0.attn.W_K"),
    ({"n_samples": 100}, r"n_samples= 100, there 200"),
    ({"tokens": torch.zeros(40, 10, dtype=torch.long)}, r"tokens= \(or inputs=\)"),
    ({"background": torch.ones(40, 10, dtype=torch.long)}, r"the data of background= .*, there None"),
]


@pytest.fixture(scope="module")
def begun(tiny_hooked, tiny_tokens, tmp_path_factory):
    """A folder in which a fit was stopped; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("folders") / "begun"
    with stopped_after(4), pytest.raises(RuntimeError, match="stopped here"):
        fitted(tiny_hooked, tiny_tokens, folder)
    return folder


@pytest.fixture
def copy(begun, tmp_path):
    shutil.copytree(begun, tmp_path / "copy")
    return tmp_path / "copy"


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=[str(list(changes)[0]) for changes, _ in CHANGES])
def test_a_fit_with_other_arguments_or_data_is_refused_by_name(tiny_hooked, tiny_tokens, begun, changes, message):
    before = bytes_in(begun)
    with pytest.raises(StoreError, match=message):
        fitted(tiny_hooked, **{"tokens": tiny_tokens, "folder": begun, **changes})
    assert bytes_in(begun) == before


@pytest.mark.parametrize("name", [W_K, "unembed.W_U"])
def test_other_weights_are_refused_by_name(tiny_hooked, tiny_tokens, begun, name):
    weight = tiny_hooked.get_parameter(name)
    value = weight.flatten()[3].item()
    message = r"the weights of 'blocks.0.attn.W_K' have changed" if name == W_K else r"the model's other weights"
    with torch.no_grad():
        weight.view(-1)[3] += 1
    try:
        with pytest.raises(StoreError, match=message):
            fitted(tiny_hooked, tiny_tokens, begun)
    finally:
        with torch.no_grad():
            weight.view(-1)[3] = value


def test_gradients_of_other_bits_are_refused(tiny_hooked, tiny_tokens, copy, monkeypatch):
    """As another number of threads, or another machine, may make them."""
    shutil.rmtree(copy / "gradients")
    norms = resuming._norms_sum
    monkeypatch.setattr(resuming, "_norms_sum", lambda stores: norms(stores)[::-1])
    with pytest.raises(StoreError, match=r"the training gradients themselves \w+…, there"):
        fitted(tiny_hooked, tiny_tokens, copy)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_refused_before_anything_is_made(tiny_hooked, tiny_tokens, copy):
    shutil.rmtree(copy / "gradients")
    flip(copy / "fit.safetensors")
    with pytest.raises(StoreError, match=r"do not match their checksum"):
        fitted(tiny_hooked, tiny_tokens, copy)
    assert not (copy / "gradients").exists()


def test_a_damaged_shard_is_made_again(tiny_hooked, tiny_tokens, unbroken, copy, capsys):
    flip(copy / "gradients" / "train-00001.safetensors")
    assert_same(fitted(tiny_hooked, tiny_tokens, copy, progress=True), unbroken)
    assert "train-00001.safetensors does not match its checksum: it is made again" in capsys.readouterr().err


@contextmanager
def full_disk_at(n_files: int):
    """Let only so many whole files through; what comes then finds half of its room."""
    sync, count = os.fsync, iter(range(10**9))

    def fsync(file):
        if next(count) >= n_files:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sync(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("param_features.files.disk.os.fsync", fsync)
        yield


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tiny_hooked, tiny_tokens, unbroken, copy):
    kept = (copy / "fit.safetensors").read_bytes()
    with (
        full_disk_at(0),
        pytest.raises(DiskFullError, match=r"No space left.*takes .* MiB.*That of step 4 stays in fit\.before"),
    ):
        fitted(tiny_hooked, tiny_tokens, copy)
    assert not list(copy.glob("*.unfinished"))
    assert not (copy / "fit.safetensors").exists()
    assert (copy / "fit.before.safetensors").read_bytes() == kept
    with full_disk_at(0), pytest.raises(DiskFullError, match=r"step 5 takes"):
        fitted(tiny_hooked, tiny_tokens, copy)
    assert_same(fitted(tiny_hooked, tiny_tokens, copy), unbroken)


def test_a_disk_that_holds_no_checkpoint_shows_before_the_first_step(tiny_hooked, tiny_tokens, copy):
    for path in copy.glob("fit*"):
        path.unlink()
    with stopped_after(0), full_disk_at(0), pytest.raises(DiskFullError, match=r"step 0 .*None was kept before"):
        fitted(tiny_hooked, tiny_tokens, copy)


def test_a_files_size_limit_is_a_full_disk(tiny_hooked, tiny_tokens, copy, unbroken):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"File too large"):
            fitted(tiny_hooked, tiny_tokens, copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_same(fitted(tiny_hooked, tiny_tokens, copy), unbroken)


def test_two_decompositions_do_not_share_a_folder(tiny_hooked, tiny_tokens, copy, monkeypatch):
    monkeypatch.setattr(Trainer, "step", lambda _: fitted(tiny_hooked, tiny_tokens, copy))
    with pytest.raises(StoreError, match=r"Another decomposition writes to"):
        fitted(tiny_hooked, tiny_tokens, copy)


def test_wrong_arguments_are_refused_before_the_harvest(tiny_hooked, tiny_tokens, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"every=-1 of pf.CheckpointSettings must not be negative"):
        pf.CheckpointSettings(tmp_path / "new", every=-1)
    with pytest.raises(SettingError, match=r"'.*file' is a file. Give a folder"):
        fitted(tiny_hooked, tiny_tokens, tmp_path / "file")
    with pytest.raises(SampleCountError, match=r"fewer than the 500 features"):
        fitted(tiny_hooked, tiny_tokens, tmp_path / "new", n_features=500)
    assert not (tmp_path / "new" / "gradients").exists()


def decomposed(folder: Path, is_kept: bool) -> None:
    """A job that takes a few seconds."""
    resuming.SHARD_MIB = 0.5
    checkpoints = pf.CheckpointSettings(folder, every=0) if is_kept else None
    call = {"harvest": pf.HarvestSettings(batch_size=2), "n_samples": 600, "n_features": 20, "l0": 2, "steps": 60}
    model, tokens = pf.demo.load_model(), pf.demo.tokens(60)
    pf.decompose(model, "blocks.2.attn.W_K", tokens, progress=False, checkpoints=checkpoints, **call).save_pretrained(
        folder / "features"
    )


@pytest.mark.slow
def test_killed_decompositions_go_on_to_the_same_bits(tmp_path):
    unbroken, broken = unbroken_and_killed(decomposed, tmp_path, span=(0.1, 0.5))
    assert n_steps_in(broken / "fit.safetensors") == 60
    ours, theirs = (load_file(folder / "features" / "features.safetensors") for folder in (broken, unbroken))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    one, other = (json.loads((folder / "features" / "config.json").read_text())["metrics"] for folder in (broken, unbroken))
    assert one == other
