"""Where something is to be written is checked before the work, and `~` is the user's folder wherever a path is taken."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.circuits import Circuit
from param_features.errors import DestinationError, ParamFeaturesError
from param_features.files import new_file, new_folder
from param_features.views import feature_view
from tests.circuits_made import small_circuit

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
CALL = {"params": "weight", "inputs": X, "n_features": 2, "l0": 1, "steps": 2, "progress": False}


@pytest.fixture(scope="module")
def features():
    return pf.decompose(nn.Linear(4, 3), **CALL)


@pytest.fixture
def no_work(monkeypatch):
    """Neither a report's measuring, nor a harvest or a fit."""
    for place in ("report.features.curve_of", "run.harvesting.harvested", "run.from_gradients.Decomposition.fitted"):
        monkeypatch.setattr(f"param_features.{place}", None)


def writers(features):
    """What writes a file, and what writes a folder."""
    view = feature_view(0, [], measured="nats")
    files = {
        "report": features.report,
        "circuit": small_circuit().save,
        "neuronpedia": lambda path: small_circuit().to_neuronpedia(path, slug="a", scan="b"),
        "view": view.save,
        "figure": lambda path: pf.plot.save(pf.plot.sweep, path),
    }
    folders = {
        "saved": features.save_pretrained,
        "card": features.save_card,
        "lora": lambda path: features.to_lora(path, {0: 1.0}),
        "harvest": lambda path: pf.harvest(nn.Linear(4, 3), "weight", inputs=X, directory=path),
        "checkpoints": lambda path: pf.decompose(nn.Linear(4, 3), checkpoints=path, **CALL),
        "sweep": lambda path: pf.sweep(nn.Linear(4, 3), directory=path, **CALL),
    }
    return files, folders


FILES = ("report", "circuit", "neuronpedia", "view", "figure")
FOLDERS = ("saved", "card", "lora", "harvest", "checkpoints", "sweep")


@pytest.mark.parametrize("name", FILES)
def test_a_folder_is_no_file(features, no_work, tmp_path, name):
    with pytest.raises(DestinationError, match="is a folder. Give a file in it, such as"):
        writers(features)[0][name](tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_file_is_no_folder(features, no_work, tmp_path, name):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ParamFeaturesError, match="is a file. Give (a|the name of a) folder"):
        writers(features)[1][name](tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("bad", ["taken/inside", "x" * 5000, "a\0b"])
def test_places_where_nothing_can_lie_are_refused_by_name(features, no_work, tmp_path, monkeypatch, name, bad):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    write = {**writers(features)[0], **writers(features)[1]}[name]
    with pytest.raises(ParamFeaturesError):
        write(bad)


def test_what_may_not_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    for check in (lambda: new_file(tmp_path / "a" / "b.html", "x.html"), lambda: new_folder(tmp_path)):
        with pytest.raises(DestinationError, match="no permission"):
            check()


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path
    assert not (tmp_path / "here" / "~").exists()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_users_folder(features, home, kind, command):
    features.save_pretrained(kind("~/saved"))
    assert pf.load(kind("~/saved")).n_features == 2
    small_circuit().save(kind("~/circuit.json"))
    assert Circuit.load(kind("~/circuit.json")).metric == small_circuit().metric
    feature_view(0, [], measured="nats").save(kind("~/view.html"))
    store = pf.harvest(nn.Linear(4, 3), "weight", inputs=X, directory=kind("~/store"), progress=False)
    assert pf.FactorStore.open(kind("~/store")).names == store.names
    assert pf.CheckpointSettings(kind("~/steps")).folder() == home / "steps"
    torch.save({"weight": torch.ones(3, 4)}, home / "w.pt")
    assert features.coordinates(kind("~/w.pt"), since={"weight": torch.zeros(3, 4)}) is not None
    assert {path.name for path in home.iterdir()} >= {"saved", "circuit.json", "view.html", "store", "steps"}


def test_the_command_line_reads_a_tilde_too(home, command):
    (home / "full").mkdir()
    (home / "full" / "file").write_text("")
    done = command("decompose", "--model", "demo", "--dataset", "demo", "--params", "blocks.0.attn.W_K", "--out=~/full")
    assert str(home / "full") in done[2] and "not empty" in done[2]
