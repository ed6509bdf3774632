"""Folders whose names lead elsewhere: links, pipes and planted files, in every reader and writer."""

import json
import os

import pytest

import param_features as pf
from param_features.errors import StoreError
from param_features.files.bundle import read_bundle
from param_features.files.checked_json import Format, parse_json
from param_features.files.disk import Origin, alone_in, fresh, is_plain_name, opened, read_file, unfinished, write_whole
from param_features.files.tensors import read_tensors
from param_features.fit.checkpoint import read_newest
from param_features.gradients.disk.shards import Column, ShardWriter
from param_features.params import default_fold
from param_features.params.folds import is_fold
from tests.circuits_made import small_circuit
from tests.fuzz.mutate import joined, parted
from tests.fuzz.readers import GOLDEN, READERS, files_of, within

HERE = Origin("x", "Copy it again.")
OUT = r"is a link that leads out of"
NOT_PLAIN = r"is a folder, a pipe or a device"

READS = {
    "features": ("untied", "config.json", pf.load),
    "tensors": ("untied", "features.safetensors", pf.load),
    "manifest": ("store", "manifest.json", pf.FactorStore.open),
    "inputs": ("store", "inputs.safetensors", pf.FactorStore.open),
    "shard": ("store", "train-00000.safetensors", pf.FactorStore.open),
    "checkpoint": ("checkpoint", "fit.safetensors", lambda folder: read_newest(folder / "fit.safetensors")),
    "circuit": (".", "circuit.json", lambda folder: pf.circuits.Circuit.load(folder / "circuit.json")),
}


@pytest.fixture(params=READS)
def shared(request, tmp_path):
    """A folder of a reader's files, one of them by name, and the reader."""
    place, name, read = READS[request.param]
    folder = tmp_path / "shared"
    folder.mkdir()
    for file, data in files_of(GOLDEN / place).items():
        (folder / file).write_bytes(data)
    return folder, name, read


def test_a_link_out_of_the_folder_is_refused_and_one_inside_it_followed(shared, tmp_path):
    folder, name, read = shared
    (folder / name).rename(folder / "moved")
    (folder / name).symlink_to("moved")
    read(folder)
    (folder / "moved").rename(tmp_path / "outside")
    for target in (tmp_path / "outside", "../outside"):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
        with pytest.raises(StoreError, match=rf"{OUT}|is a link that leads|cannot be opened, or is a link"):
            read(folder)


def test_a_folder_that_is_reached_by_a_link_is_read(shared, tmp_path):
    folder, _, read = shared
    (tmp_path / "link").symlink_to(folder)
    read(tmp_path / "link")


def test_a_pipe_in_the_place_of_a_file_is_refused_without_waiting(shared):
    folder, name, read = shared
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with within(5), pytest.raises(StoreError):
        read(folder)


def test_a_folder_in_the_place_of_a_file_is_refused(shared):
    folder, name, read = shared
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(StoreError):
        read(folder)


def test_links_may_lead_where_the_caller_says(tmp_path):
    cache = tmp_path / "cache"
    (cache / "snapshot").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file, data in files_of(GOLDEN / "untied").items():
        (cache / "blobs" / file).write_bytes(data)
        (cache / "snapshot" / file).symlink_to(f"../blobs/{file}")
    with pytest.raises(StoreError, match=OUT):
        read_bundle(cache / "snapshot")
    tensors, record = read_bundle(cache / "snapshot", within=cache)
    assert "references" in tensors and record["params"]


@pytest.mark.parametrize("target", ["/dev/zero", "/dev/null", "/proc/self/mem", "/etc"])
def test_devices_are_not_opened_even_where_links_may_lead_anywhere(tmp_path, target):
    (tmp_path / "a").symlink_to(target)
    with within(5), pytest.raises(StoreError, match=rf"{NOT_PLAIN}|cannot be read"):
        read_file(tmp_path / "a", HERE, within=tmp_path.__class__("/"), most=100)


def test_a_pipe_is_not_even_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "a")
    monkeypatch.setattr("param_features.files.disk.os.open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(StoreError, match=NOT_PLAIN):
        opened(tmp_path / "a", HERE)


def test_links_in_a_circle_and_names_with_nul_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("a")
    for path in (tmp_path / "a", tmp_path / "b\0c", tmp_path / "none"):
        with pytest.raises(StoreError, match="cannot be read"):
            opened(path, HERE)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "a").open("wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    with within(5), pytest.raises(StoreError, match=r"has 1024.0 GiB, and files of its kind have at most 0.00 MiB"):
        read_file(tmp_path / "a", HERE, most=1000)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/a", "C:\\a", "C:a", "a\\b", "a\0", ".a", "-a", "a" * 300, "a\n", "é"]
)
def test_names_that_could_lead_elsewhere_are_not_plain(name):
    assert not is_plain_name(name)
    files = files_of(GOLDEN / "store")
    record = json.loads(files["manifest.json"])
    record["planned"][0]["name"] = name
    record["whole"][name] = record["whole"].pop("train-00000.safetensors")
    files["manifest.json"] = json.dumps(record).encode()
    assert (
        READERS["manifest"].outcome(READERS["manifest"].restamp({"manifest.json": files["manifest.json"]})) == "StoreError"
    )


def test_writing_replaces_a_link_and_never_follows_one(tmp_path):
    outside, path = tmp_path / "outside", tmp_path / "folder" / "a.json"
    outside.write_text("mine")
    path.parent.mkdir()
    path.symlink_to(outside)
    unfinished(path).symlink_to(outside)
    write_whole(path, b"new")
    assert (outside.read_text(), path.read_text(), path.is_symlink()) == ("mine", "new", False)
    assert not unfinished(path).exists()


def test_a_shard_and_a_circuit_are_not_written_through_a_planted_link(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in ("a.safetensors", "c.json"):
        unfinished(tmp_path / name).symlink_to(outside)
    with ShardWriter(tmp_path / "a.safetensors", {"row": Column("I64", ())}, 1):
        pass
    small_circuit().save(tmp_path / "c.json")
    assert outside.read_text() == "mine"


def test_a_planted_lock_is_not_followed_and_does_not_hang(tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / ".lock").symlink_to(outside)
    with pytest.raises(StoreError, match="is a link, not this library's lock"), alone_in(tmp_path, "harvest"):
        pass
    assert outside.read_text() == "mine"
    (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / ".lock")
    with within(5), alone_in(tmp_path, "harvest"):
        pass


def test_a_fresh_file_is_new(tmp_path):
    (tmp_path / "a").write_text("old")
    os.link(tmp_path / "a", tmp_path / "b")
    os.close(fresh(tmp_path / "a"))
    assert (tmp_path / "a").read_text() == "" and (tmp_path / "b").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "names 'a' twice"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": [-Infinity]}', "holds -Infinity"),
        ('{"a": 1e999}', "beyond 64-bit floats"),
        ('{"a": 9223372036854775808}', "beyond 64 bits"),
        ("9" * 5000, "is not JSON"),
        ('"\\ud800"', "surrogates not allowed"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        ("[" * 10**5, "is not JSON"),
        ("{", "is not JSON"),
    ],
)
def test_json_that_readers_would_disagree_on_is_refused(text, message):
    with pytest.raises(StoreError, match=message):
        parse_json(text, HERE)
    assert parse_json("[" * 64 + "]" * 64, HERE)


def test_a_record_is_stamped_and_read_and_numbers_that_are_not_finite_become_null():
    kind = Format("f", "a thing", (1, 2), "sum", unsummed=("library_version",))
    written = kind.stamped({"a": float("nan"), "b": (1, 2.5)})
    found = kind.read(json.dumps(written), HERE)
    assert (found["a"], found["b"], found["format_version"]) == (None, [1, 2.5], 2)
    kind.read(json.dumps(written | {"library_version": "another"}), HERE)
    for change, message in (
        ({"b": 3}, "its own checksum"),
        ({"format_version": 3}, "format version 3; this library reads versions 1 and 2"),
        ({"format_version": True}, "format version True"),
        ({"format": "g"}, "does not describe a thing"),
    ):
        with pytest.raises(StoreError, match=message):
            kind.read(json.dumps(written | change), HERE)


HEADERS = [
    (lambda h: h["conv.bias"].update(dtype="F4"), "has dtype 'F4'; accepted: F64"),
    (lambda h: h["conv.bias"].update(shape=[2**40]), r"has 8 bytes for shape \[1099511627776\] of F32"),
    (lambda h: h["conv.bias"].update(shape=[0, 2**47, 2**47]), "which no memory holds"),
    (lambda h: h["conv.bias"].update(shape=[-2]), "not at most 16 whole numbers"),
    (lambda h: h["conv.bias"].update(shape=[True, 2]), "not at most 16 whole numbers"),
    (lambda h: h["conv.bias"].update(data_offsets=[-8, 0]), "not two whole numbers"),
    (lambda h: h["conv.bias"].update(more=1), "not its dtype, shape and data_offsets"),
    (lambda h: h.update({"twice": h["conv.bias"]}), "overlap or leave gaps"),
    (lambda h: h.pop("conv.bias"), "overlap or leave gaps|end at byte"),
    (lambda h: h.update(__metadata__={"a": 1}), "metadata"),
]


@pytest.mark.parametrize(("change", "message"), HEADERS)
def test_a_header_that_does_not_fit_its_file_is_refused(change, message):
    header, rest = parted((GOLDEN / "images.safetensors").read_bytes())
    assert read_tensors(joined(header, rest), HERE)[0]
    change(header)
    with pytest.raises(StoreError, match=message):
        read_tensors(joined(header, rest), HERE)


def test_folds_of_adapters_are_known_and_others_are_not():
    for n in range(5):
        assert is_fold(default_fold(n), n), default_fold(n)
    for fold, n in (
        ("head i o -> (head o) i", 3),
        ("head i o -> o (head i)", 3),
        ("head o -> (head o) 1", 2),
        ("o i -> o i", 2),
    ):
        assert is_fold(fold, n)
    for fold, n in (
        ("o i -> o i", 3), ("o i -> o", 2), ("o i -> (o i)", 2), ("o i -> o o", 2), ("o ... -> o ...", 2), ("o i->o i", 2),
        ("o i -> o i 1", 2), ("o i -> o () i", 2), ("", 0), ("o i -> ((o) i) 1", 2), ("o i -> o j", 2), ("o  i -> o i", 2),
        ("o i -> o i\n", 2), ("__class__ i -> __class__ i", 2),
    ):  # fmt: skip
        assert not is_fold(fold, n), fold
