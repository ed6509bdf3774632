"""Files that earlier versions wrote are read with the same numbers, and today's are of the same form."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import param_features as pf
from param_features.fit.checkpoint import read_checkpoint
from param_features.gradients.disk import manifest as manifests
from param_features.gradients.disk.manifest import Manifest
from tests.golden.make import IMAGES, MODELS, TOKENS, make, values_of

HERE = Path(__file__).parent
FOLDERS = sorted(path for path in HERE.iterdir() if (path / "values.json").is_file())
FREE = ("config", "recipe", "record", "metrics", "scores")
"""Parts of a record that may gain entries without a new version of the format."""
MOVED = {"measure": "harvest"}
"""Objects of `config` whose entries lie in another of its objects since."""


@pytest.fixture(params=FOLDERS, ids=lambda path: path.name)
def golden(request):
    return request.param


@pytest.fixture
def values(golden):
    return json.loads((golden / "values.json").read_text(encoding="utf-8"))


def models_of(golden: Path) -> dict:
    models = {kind: MODELS[kind]().eval() for kind in MODELS}
    for kind, model in models.items():
        model.load_state_dict(load_file(golden / f"{kind}.safetensors"))
    return models


def plain(value):
    return json.loads(json.dumps(value))


@pytest.mark.parametrize(("name", "kind"), [("untied", IMAGES), ("tied", TOKENS)])
def test_features_are_read_with_the_same_numbers(golden, values, name, kind):
    found, expected = values_of(pf.load(golden / name, model=models_of(golden)[kind])), values["features"][name]
    activations = torch.tensor(found.pop("activations"))
    torch.testing.assert_close(activations, torch.tensor(expected.pop("activations")))  # computed anew
    assert plain(found) == expected


def test_what_is_tied_is_one_set_of_directions(golden):
    assert (tied := pf.load(golden / "tied")).v_in is tied.v_out
    assert (untied := pf.load(golden / "untied")).v_in is not untied.v_out


@pytest.mark.parametrize("name", ["store", "compressed"])
def test_a_store_is_read_with_the_same_numbers(golden, values, name):
    store = pf.FactorStore.open(golden / name)
    for split, gradients in (("train", store.train), ("held_out", store.held_out)):
        expected = {column: torch.tensor(rows) for column, rows in values["stores"][name][split].items()}
        for place, column in zip(gradients.places, ("row", "position"), strict=True):
            assert place.equal(expected.pop(column))
        for param, one in gradients.rows(slice(None)).items():
            fields = [field for field in dataclasses.asdict(one) if f"{param}/{field}" in expected]
            for field in fields:
                assert getattr(one, field).equal(expected.pop(f"{param}/{field}").to(getattr(one, field).dtype))
        assert not expected


def test_a_store_of_format_version_1_is_read(golden, tmp_path):
    for path in (golden / "store").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = json.loads((tmp_path / "manifest.json").read_text())
    for name in ("compressed", "manifest_sha256"):
        del record[name]
    for shard in record["whole"].values():
        del shard["loss"]
    for kind in record["stored"].values():
        del kind["read_as"]
    for name in ("compress_rank", "dtype"):
        del record["recipe"][name]
    old = dataclasses.replace(manifests.FORMAT, versions=(1,))
    (tmp_path / "manifest.json").write_text(json.dumps(old.stamped(record | {"format_version": 1})))
    now, before = (pf.FactorStore.open(folder) for folder in (golden / "store", tmp_path))
    assert before.manifest.compression.is_none
    for name, gradient in before.train.rows(slice(None)).items():
        for one, other in zip(gradient.tensors, now.train.rows(slice(None))[name].tensors, strict=True):
            assert one.equal(other)


def test_a_checkpoint_is_read_with_the_same_numbers(golden, values):
    found, expected = read_checkpoint(golden / "checkpoint" / "fit.safetensors"), values["checkpoint"]
    assert found.n_steps == expected["n_steps"]
    assert {name: tensor.tolist() for name, tensor in found.state.items()} == expected["tensors"]
    assert found.recipe["method"] == "l3d"
    assert Manifest.read(golden / "checkpoint" / "gradients").missing == []


def test_a_circuit_is_read_with_the_same_numbers(golden, values):
    assert plain(dataclasses.asdict(pf.circuits.Circuit.load(golden / "circuit.json"))) == values["circuit"]


def form(value, name: str = ""):
    """Keys and kinds of values, without what is free to grow."""
    if isinstance(value, dict) and name not in FREE:
        return {key: form(entry, key) for key, entry in value.items()}
    if isinstance(value, list):
        return [form(entry) for entry in value[:1]]
    return "free" if name in FREE else type(value).__name__


def forms(folder: Path) -> dict:
    """Of every file in a folder: JSON's keys, and tensors' names, dtypes and shapes."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.name != "values.json"):
        name = str(path.relative_to(folder))
        if path.suffix == ".json":
            found[name] = form(json.loads(path.read_text(encoding="utf-8")))
        elif path.suffix == ".safetensors" and "before" not in name:
            with safe_open(path, "pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                found[name] = {key: (one.get_dtype(), one.get_shape()) for key, one in slices.items()}
                record = json.loads((file.metadata() or {}).get("record", "{}"))
            found[f"{name}: record"] = form(record)
    return found


@pytest.fixture(scope="module")
def today(tmp_path_factory):
    folder = tmp_path_factory.mktemp("today")
    make(folder, models_of(FOLDERS[-1]))
    return folder


def test_what_is_written_today_has_the_same_form(today):
    before, now = forms(FOLDERS[-1]), forms(today)
    for kind in MODELS:
        del before[f"{kind}.safetensors"], before[f"{kind}.safetensors: record"]
    assert now == before, "A file's form has changed: read docs/reference/formats.md, 'Changing a format'."


@pytest.mark.parametrize("name", ["untied/config.json", "store/manifest.json", "circuit.json"])
def test_free_parts_keep_their_entries(name, today):
    before, now = (json.loads((folder / name).read_text(encoding="utf-8")) for folder in (FOLDERS[-1], today))
    for entry, place in MOVED.items():
        if entry in before.get("config", {}):
            assert before["config"].pop(entry).keys() <= now["config"][place].keys()
    for part in (part for part in FREE if part in before):
        assert before[part].keys() <= now[part].keys()
