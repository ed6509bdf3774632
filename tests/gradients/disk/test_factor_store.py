"""Gradients on disk: the same bits as in memory, after kills and damage too, and nothing from another harvest."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import param_features as pf
from param_features.errors import DiskFullError, InputError, NoGradientError, SampleCountError, SettingError, StoreError
from param_features.files.disk import Origin
from param_features.files.schema import Part
from param_features.gradients import Dense, Factored, GradientStore, Indexed
from param_features.gradients.disk import DiskGradients, shards
from param_features.gradients.disk.shards import ShardFile, ShardWriter, Stored, checksum, columns_of, tensors_of
from tests.kills import unbroken_and_killed

W_K = "blocks.0.attn.W_K"
QUICK = {"n_features": 6, "l0": 2, "steps": 10, "progress": False}
SMALL = {"n_samples": 200, "settings": pf.HarvestSettings(batch_size=4), "shard_mib": 0.05, "progress": False}


def harvested(model, tokens, directory, **changes) -> pf.FactorStore:
    return pf.harvest(model, **{"params": W_K, "tokens": tokens, "directory": directory, **SMALL, **changes})


def sums(folder: Path) -> dict[str, str]:
    return {path.name: checksum(path) for path in sorted(folder.glob("*.safetensors"))}


def assert_same_fit(one: pf.ParamFeatures, other: pf.ParamFeatures) -> None:
    for a, b in ((one.v_in, other.v_in), (one.v_out, other.v_out)):
        assert all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))
    assert dict(one.metrics) == dict(other.metrics)
    assert one.threshold == other.threshold
    assert torch.equal(one.references, other.references)
    assert torch.equal(one.examples.tensors[0], other.examples.tensors[0])


@pytest.fixture(scope="module")
def kept(tiny_hooked, tiny_tokens, tmp_path_factory):
    """A store of several shards; tests that damage it take a copy."""
    return harvested(tiny_hooked, tiny_tokens, tmp_path_factory.mktemp("stores") / "kept")


@pytest.fixture
def copy(kept, tmp_path):
    shutil.copytree(kept.directory, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def some():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    index = torch.randint(9, (23, 3), generator=generator)
    return {
        "a": Dense(draw(23, 4, 5)),
        "b.c": Factored(draw(23, 2, 40), draw(23, 2, 30).double()),
        "d[k]": Indexed(draw(23, 3, 4).bfloat16(), index, 9),
    }


def written(folder: Path, gradients, sizes) -> DiskGradients:
    stored = {name: Stored.like(gradient) for name, gradient in gradients.items()}
    start, files = 0, []
    for number, size in enumerate(sizes):
        with ShardWriter(folder / f"{number}.safetensors", columns_of(stored), size) as writer:
            for first in range(start, start + size, 2):
                rows = slice(first, min(first + 2, start + size))
                places = torch.arange(23)[rows]
                part = {name: gradient.map(lambda t, rows=rows: t[rows]) for name, gradient in gradients.items()}
                writer.add(tensors_of(part) | {"row": places, "position": places * 2})
            size_on_disk, _ = writer.finish()
        assert size_on_disk == (folder / f"{number}.safetensors").stat().st_size
        files.append(ShardFile(folder / f"{number}.safetensors"))
        start += size
    return DiskGradients(files, {name: Stored.read(_read_again(kind)) for name, kind in stored.items()})


def _read_again(kind: Stored) -> Part:
    record = {"format": kind.format, "columns": kind.columns, "d_in": kind.d_in}
    return Part(json.loads(json.dumps(record)), "stored", Origin("manifest.json", "Harvest again."))


INDICES = [
    slice(None), slice(3, 17), slice(0, 23, 4), slice(5, 5), torch.tensor([22, 0, 7, 7, 8, 9, 3]), torch.tensor([11]),
]  # fmt: skip


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_rows_of_every_format_come_back_bit_for_bit(some, tmp_path, index):
    found = written(tmp_path, some, (7, 1, 15)).rows(index)
    assert list(found) == list(some)
    for name, gradient in some.items():
        assert type(found[name]) is type(gradient)
        for ours, theirs in zip(found[name].tensors, gradient.tensors, strict=True):
            assert torch.equal(ours, theirs[index])
            assert ours.dtype == theirs.dtype
    assert found["d[k]"].matrix_shape == (4, 9)


def test_shards_are_safetensors_and_name_each_samples_place(some, tmp_path):
    store = written(tmp_path, some, (7, 16))
    second = load_file(tmp_path / "1.safetensors")
    assert torch.equal(second["b.c/inputs"], some["b.c"].inputs[7:])
    assert torch.equal(second["d[k]/delta"], some["d[k]"].delta[7:])
    assert torch.equal(torch.stack(store.places), torch.stack([torch.arange(23), torch.arange(23) * 2]))


def test_chunks_and_norms_are_those_of_a_store_in_memory(some, tmp_path):
    some = {"a": some["a"], "b.c": some["b.c"]}
    memory = GradientStore(23, some)
    memory.add(some)
    disk = written(tmp_path, some, (11, 12))
    assert torch.equal(disk.square_norm(), memory.square_norm())
    assert [len(chunk["a"].matrix) for chunk in disk.chunks(10)] == [10, 10, 3]
    assert disk.sample_bytes == memory.sample_bytes == 4 * 20 + 80 * 4 + 60 * 8


def test_a_part_is_spread_over_all_samples(some, tmp_path):
    disk = written(tmp_path, some, (11, 12))
    part = disk.spread(5)
    assert disk.spread(23) is disk
    assert torch.equal(part.rows(slice(None))["a"].matrix, some["a"].matrix[[0, 5, 11, 16, 22]])
    assert torch.equal(part.rows(torch.tensor([4, 0]))["a"].matrix, some["a"].matrix[[22, 0]])


def test_a_shard_has_its_name_only_when_it_is_whole(some, tmp_path):
    stored = {"a": Stored.like(some["a"])}
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "x.safetensors", columns_of(stored), 23):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


CASES = {
    "sample": {},
    "mean": {"reference": "mean"},
    "label, two parameters": {"reference": "label", "params": ["blocks.*.attn.W_K", "embed.W_E"]},
    "given": {"reference": torch.linspace(0, 1, 20)},
    "seed": {"seed": 3},
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_a_fit_from_disk_has_the_bits_of_a_fit_that_harvests(tiny_hooked, tiny_tokens, tmp_path, case):
    store = harvested(tiny_hooked, tiny_tokens, tmp_path, **case)
    assert len(store.manifest.planned) > 4
    seed = {"seed": case.get("seed", 0)}
    own = {"params": W_K, "tokens": tiny_tokens, "harvest": SMALL["settings"], "n_samples": SMALL["n_samples"], **case}
    expected = pf.decompose(tiny_hooked, **own, **QUICK)
    assert_same_fit(pf.decompose(tiny_hooked, store=store, **seed, **QUICK), expected)
    assert_same_fit(pf.decompose(tiny_hooked, store=tmp_path, **{**own, **QUICK}), expected)


def test_one_store_serves_other_seeds_ranks_and_numbers_of_features(tiny_hooked, kept):
    fits = [pf.decompose(tiny_hooked, store=kept, **QUICK | more) for more in ({"seed": 1}, {"seed": 2}, {"n_features": 9})]
    assert fits[0].metrics["control_pca"] == fits[1].metrics["control_pca"]
    assert not torch.equal(fits[0].v_out.tensors[0], fits[1].v_out.tensors[0])
    assert len(pf.decompose(tiny_hooked, store=kept, fit=pf.FitSettings(rank=3), **QUICK).v_out.tensors[0][0, 0]) == 3
    assert fits[2].n_features == 9
    assert fits[0].config["store"].items() >= {"directory": str(kept.directory), "seed": 0, "compression": "none"}.items()
    assert len(fits[0].config["store"]["recipe_sha256"]) == 64


def test_the_other_method_pairs_and_a_background_work_from_a_store(tiny_hooked, tiny_tokens, tmp_path):
    pairs = pf.Pairs(tiny_tokens, tiny_tokens.flip(0))
    harvested(tiny_hooked, None, tmp_path / "pairs", reference=pairs, n_samples=None)
    expected = pf.decompose(tiny_hooked, W_K, reference=pairs, harvest=SMALL["settings"], **QUICK)
    assert_same_fit(pf.decompose(tiny_hooked, store=tmp_path / "pairs", **QUICK), expected)
    harvested(tiny_hooked, tiny_tokens, tmp_path / "other")
    more = {"method": "hessian"}, {"background": tiny_tokens[:20].flip(1)}
    for each in more:
        own = {"n_samples": 200, "harvest": SMALL["settings"], **QUICK, **each}
        expected = pf.decompose(tiny_hooked, W_K, tiny_tokens, **own)
        assert_same_fit(pf.decompose(tiny_hooked, store=tmp_path / "other", **QUICK, **each), expected)


def test_modules_without_tokens_and_with_code_of_their_own(classifier, images, tmp_path):
    def apart(output, reference):
        return (output - reference).abs().sum(-1)

    call = {"params": "classifier.*", "tokens": None, "inputs": images, "n_samples": 60, "divergence": apart}
    harvested(classifier, directory=tmp_path, **call)
    expected = pf.decompose(classifier, **call, harvest=SMALL["settings"], **QUICK)
    assert_same_fit(pf.decompose(classifier, store=tmp_path, divergence=apart, **QUICK), expected)
    with pytest.raises(SettingError, match=r"your own divergence=.*Give it again"):
        pf.decompose(classifier, store=tmp_path, **QUICK)
    with pytest.raises(StoreError, match=r"the code of divergence="):
        harvested(classifier, directory=tmp_path, **call | {"divergence": _renamed(lambda out, ref: (out - ref).sum(-1))})


def _renamed(function):
    function.__name__ = "apart"
    return function


CHANGES = [
    ({"n_samples": 100}, r"n_samples= 100, there 200"),
    ({"seed": 1}, r"seed= 1, there 0"),
    ({"reference": "mean"}, r"reference= 'mean', there 'sample'"),
    ({"divergence": "sum"}, r"divergence= 'sum', there 'kl'"),
    ({"params": "blocks.1.attn.W_K"}, r"params= chooses blocks.1.attn.W_K, there blocks.0.attn.W_K"),
    ({"settings": pf.HarvestSettings(batch_size=5)}, r"batch_size= 5, there 4"),
    ({"shard_mib": 1}, r"shard_mib= 1, there 0.05"),
    ({"seed": 1, "n_samples": 100}, r"seed= 1, there 0; n_samples= 100, there 200"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_another_harvest_into_the_same_folder_is_refused_by_name(tiny_hooked, tiny_tokens, kept, changes, message):
    before = sums(kept.directory)
    with pytest.raises(StoreError, match=message):
        harvested(tiny_hooked, tiny_tokens, kept.directory, **changes)
    assert sums(kept.directory) == before


GIVEN = [
    ({"n_samples": 100}, r"n_samples= 100, there 200"),
    ({"harvest": pf.HarvestSettings(n_samples=200, batch_size=5)}, r"batch_size= 5, there 4"),
    ({"params": "blocks.1.attn.W_K"}, r"params= chooses blocks.1"),
    ({"reference": "mean"}, r"reference= 'mean', there 'sample'"),
    ({"divergence": "sum"}, r"divergence= 'sum', there 'kl'"),
]


@pytest.mark.parametrize(("given", "message"), GIVEN)
def test_what_is_given_beside_a_store_must_be_its_own(tiny_hooked, kept, given, message):
    with pytest.raises(StoreError, match=message):
        pf.decompose(tiny_hooked, store=kept, **QUICK, **given)


def test_other_data_and_other_weights_are_refused_by_name(tiny_hooked, tiny_tokens, kept):
    with pytest.raises(StoreError, match=r"tokens= \(or inputs=\)"):
        pf.decompose(tiny_hooked, W_K, tiny_tokens.flip(0), store=kept, **QUICK)
    for name, message in ((W_K, r"the weights of 'blocks.0.attn.W_K' have"), ("unembed.W_U", r"model's other weights")):
        weight = tiny_hooked.get_parameter(name)
        value = weight.flatten()[3].item()
        with torch.no_grad():
            weight.view(-1)[3] += 1
        try:
            with pytest.raises(StoreError, match=message):
                pf.decompose(tiny_hooked, store=kept, **QUICK)
        finally:
            with torch.no_grad():
                weight.view(-1)[3] = value
    assert pf.decompose(tiny_hooked, store=kept, **QUICK).n_features == 6


def test_too_many_features_unkept_data_and_no_parameters_are_refused(tiny_hooked, kept, classifier, tmp_path):
    with pytest.raises(SampleCountError, match=r"180 training samples, fewer than the 500 features"):
        pf.decompose(tiny_hooked, store=kept, **QUICK | {"n_features": 500})
    with pytest.raises(pf.errors.EmptySelectionError):
        pf.decompose(tiny_hooked, **QUICK)
    with pytest.raises(NoGradientError):
        harvested(tiny_hooked, torch.zeros(40, 1, dtype=torch.long), tmp_path, n_samples=40)
    assert not list(tmp_path.glob("held_out*"))


def test_inputs_that_are_no_tensors_must_be_given_again(tiny_hooked, tiny_tokens, tmp_path):
    inputs = {"input": tiny_tokens, "return_type": "logits"}
    harvested(tiny_hooked, None, tmp_path, inputs=inputs)
    with pytest.raises(InputError, match=r"Give the same inputs= again"):
        pf.decompose(tiny_hooked, store=tmp_path, **QUICK)
    assert pf.decompose(tiny_hooked, store=tmp_path, inputs=inputs, **QUICK).n_features == 6


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-9] ^= 1
    path.write_bytes(data)


DAMAGE = [(cut, r"bytes instead of"), (flip, r"does not match its checksum"), (Path.unlink, r"is missing")]


@pytest.mark.parametrize(("harm", "message"), DAMAGE, ids=["cut", "flipped", "removed"])
@pytest.mark.parametrize("name", ["train-00002.safetensors", "held_out-00000.safetensors"])
def test_a_damaged_shard_is_named_never_read_and_made_again(tiny_hooked, tiny_tokens, copy, capsys, harm, message, name):
    before, others = sums(copy), {path.name: path.stat().st_mtime_ns for path in copy.glob("*.safetensors")}
    harm(copy / name)
    with pytest.raises(StoreError, match=rf"{name} {message}|{name} .*{message}"):
        pf.decompose(tiny_hooked, store=copy, **QUICK)
    harvested(tiny_hooked, tiny_tokens, copy, progress=True)
    assert name in capsys.readouterr().err
    assert sums(copy) == before
    after = {path.name: path.stat().st_mtime_ns for path in copy.glob("*.safetensors")}
    changed = {other for other in after if after[other] != others[other]}
    assert changed == {name, "inputs.safetensors"}


def test_a_damaged_file_of_the_data_is_made_again(tiny_hooked, tiny_tokens, copy):
    before = sums(copy)
    flip(copy / "inputs.safetensors")
    with pytest.raises(StoreError, match=r"inputs.safetensors is not what was written"):
        pf.FactorStore.open(copy)
    harvested(tiny_hooked, tiny_tokens, copy)
    assert sums(copy) == before


def test_an_edited_or_foreign_manifest_is_refused(copy, tmp_path):
    path = copy / "manifest.json"
    path.write_text(path.read_text().replace('"n_slots": ', '"n_slots": 1'))
    with pytest.raises(StoreError, match=r"own checksum"):
        pf.FactorStore.open(copy)
    path.write_text("{")
    with pytest.raises(StoreError, match=r"not JSON"):
        pf.FactorStore.open(copy)
    with pytest.raises(StoreError, match=r"holds no manifest.json"):
        pf.FactorStore.open(tmp_path)


def failing_at(monkeypatch, n_writes: int, error: BaseException) -> None:
    """Let only so many writes to shards through."""
    write, count = os.pwrite, iter(range(10**9))

    def pwrite(*args):
        if next(count) >= n_writes:
            raise error
        return write(*args)

    monkeypatch.setattr(shards.os, "pwrite", pwrite)


def test_a_full_disk_says_what_is_needed_and_leaves_whole_shards(tiny_hooked, tiny_tokens, kept, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        failing_at(patch, 60, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(DiskFullError, match=r"No space left.*MiB are still needed.*whole shards stay"):
            harvested(tiny_hooked, tiny_tokens, tmp_path)
    assert not list(tmp_path.glob("*.unfinished"))
    there = sums(tmp_path)
    assert 1 < len(there) < len(sums(kept.directory))
    with pytest.raises(StoreError, match=r"its harvest was not finished"):
        pf.decompose(tiny_hooked, store=tmp_path, **QUICK)
    harvested(tiny_hooked, tiny_tokens, tmp_path)
    assert sums(tmp_path) == sums(kept.directory)


def test_a_disk_that_is_too_small_is_refused_before_the_run(tiny_hooked, tiny_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(DiskFullError, match=r"needed.*free\. The 0 whole shards"):
        harvested(tiny_hooked, tiny_tokens, tmp_path)
    assert not list(tmp_path.glob("train*"))


def test_a_files_size_limit_is_a_full_disk(tiny_hooked, tiny_tokens, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(DiskFullError, match=r"File too large"):
            harvested(tiny_hooked, tiny_tokens, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("n_writes", [0, 7, 33, 61])
def test_an_interrupted_harvest_goes_on_to_the_same_bits(tiny_hooked, tiny_tokens, kept, tmp_path, monkeypatch, n_writes):
    with monkeypatch.context() as patch:
        failing_at(patch, n_writes, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            harvested(tiny_hooked, tiny_tokens, tmp_path)
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("train*")}
    harvested(tiny_hooked, tiny_tokens, tmp_path)
    assert sums(tmp_path) == sums(kept.directory)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in there.items())


def test_two_harvests_do_not_share_a_folder(tiny_hooked, tiny_tokens, tmp_path, monkeypatch):
    def again(*_):
        harvested(tiny_hooked, tiny_tokens, tmp_path)

    monkeypatch.setattr(shards.os, "pwrite", again)
    with pytest.raises(StoreError, match=r"Another harvest writes to"):
        harvested(tiny_hooked, tiny_tokens, tmp_path)


def harvested_anew(folder: Path, _: bool) -> None:
    """A job of many shards."""
    call = {"settings": pf.HarvestSettings(batch_size=2), "n_samples": 300, "shard_mib": 0.05, "progress": False}
    pf.harvest(pf.demo.load_model(), "blocks.2.attn.W_K", pf.demo.tokens(30), directory=folder, **call)


@pytest.mark.slow
def test_killed_harvests_go_on_to_the_same_bits(tmp_path):
    unbroken, broken = unbroken_and_killed(harvested_anew, tmp_path, span=(0.05, 0.4))
    assert sums(broken) == sums(unbroken)


READING = """
import sys, resource, torch
torch.set_num_threads(1)
from pathlib import Path
from param_features.gradients.disk import DiskGradients
from param_features.gradients.disk.shards import Column, ShardFile, Stored
store = DiskGradients([ShardFile(Path(sys.argv[1]))], {"w": Stored("dense", {"matrix": Column("F32", (64, 64))})})
store.rows(slice(0, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(30):
    store.rows(torch.randint(store.n_samples, (64,)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    grown = []
    for n in (500, 4_000):
        columns = {"w/matrix": torch.zeros(n, 64, 64), "row": torch.zeros(n).long(), "position": torch.zeros(n).long()}
        save_file(columns, tmp_path / f"{n}.safetensors")
        done = subprocess.run([sys.executable, "-c", READING, tmp_path / f"{n}.safetensors"], capture_output=True, text=True)
        grown.append(int(done.stdout))
    assert max(grown) < 8 * 1024, f"KiB: {grown}"
