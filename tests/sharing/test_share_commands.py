"""`param-features push`, and commands that read runs on the hub."""

import re
from pathlib import Path

import pytest

import param_features as pf
from param_features.cli import viewing
from param_features.cli.models import LoadedModel
from tests.sharing.conftest import NastyTokenizer

pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # the client's own upload

REPO = "somebody/features"


@pytest.fixture
def run(features, tmp_path):
    """A saved run."""
    features.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def loads(language, monkeypatch):
    """Which models the commands load: the small one, whatever they name."""
    named = []

    def load(source):
        named.append(source.name)
        return LoadedModel(language, NastyTokenizer())

    monkeypatch.setattr(viewing, "load_model", load)
    return named


def files(hub):
    repository = hub.repositories[REPO]
    return repository.commits[repository.commit("main")]


def test_push_writes_a_card_and_prints_the_commits_address(command, owner, run):
    status, out, err = command("push", run, REPO, "--private", "--license", "mit", "--data", "stories of owls")
    assert (status, err) == (0, "")
    assert re.fullmatch(rf"{owner.address}/{REPO}/commit/\w{{40}}\n", out)
    assert owner.repositories[REPO].is_private
    found = files(owner)
    assert set(found) == {"config.json", "features.safetensors", "README.md", "features.png"}
    card = found["README.md"].decode()
    assert 'license: "mit"' in card
    assert "`stories of owls`" in card
    assert "Top examples of" not in card
    assert found["config.json"] == (run / "config.json").read_bytes()


def test_push_with_the_model_shows_examples_and_names_it(command, owner, run, loads):
    assert command("push", run, REPO, "--model", "owner/model")[0] == 0
    card = files(owner)["README.md"].decode()
    assert loads == ["owner/model"]
    assert "Top examples of the first 10 features" in card
    assert 'base_model: "owner/model"' in card


def test_a_card_in_the_folder_goes_as_it_is_and_nothing_else_does(command, owner, run):
    (run / "README.md").write_text("by hand")
    (run / "notes.txt").write_text("secret")
    assert command("push", run, REPO)[0] == 0
    assert set(files(owner)) == {"config.json", "features.safetensors", "README.md"}
    assert files(owner)["README.md"] == b"by hand"
    status, out, err = command("push", run, REPO, "--license", "mit")
    assert (status, out) == (2, "")
    assert "goes to the hub as it is, and --license would change nothing" in err


def test_errors_of_push_are_one_line(command, hub, run, tmp_path):
    for arguments, message in (
        ((run, REPO), "Repository 'somebody/features' is closed to this caller"),
        ((run, "features"), "is no name of a repository"),
        ((tmp_path / "gone", REPO), "holds no config.json"),
        ((run, REPO, "--base-model", "/home/me"), "which is no name on the hub"),
    ):
        status, out, err = command("push", *arguments)
        assert (status, out) == (2, "")
        assert re.fullmatch(f"Error: .*{message}.*\n", err)
    assert hub.repositories == {}


def test_report_takes_a_run_on_the_hub(command, owner, features, loads, monkeypatch):
    features.push_to_hub(REPO, card=None)
    written = []

    def report(found, path, **_):
        written.append((found.engine is not None, path))
        return path

    monkeypatch.setattr(pf.ParamFeatures, "report", report)
    assert command("report", REPO, "--model", "owner/model")[0] == 0
    assert command("report", f"{REPO}@main", "--model", "owner/model", "--out", "x.html")[0] == 0
    assert written == [(True, Path("report.html")), (True, Path("x.html"))]
    status, out, err = command("report", "somebody/else", "--model", "owner/model")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "repository 'somebody/else' is not on the Hugging Face hub" in err
    assert loads == ["owner/model"] * 2  # the run is looked for before the model
