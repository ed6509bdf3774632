"""Features through the real client of the hub, to a stand-in server and back."""

import hashlib
import re
import sys

import pytest
import torch

import param_features as pf
from param_features.errors import (
    HubAccessError,
    HubError,
    HubNotFoundError,
    HubOfflineError,
    MissingExtraError,
    SettingError,
    SourceError,
    StoreError,
)
from param_features.files.hub import fetched_folder
from param_features.files.hub.places import HubPlace
from param_features.machine import Processes
from tests.sharing.stand_in import TOKEN, Repository

pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")  # the client's own upload

REPO = "somebody/features"
BARE = pf.CardSettings(is_illustrated=False, n_features=1)


@pytest.fixture
def saved(features, tmp_path):
    """The bytes that save_pretrained writes, by name."""
    features.save_pretrained(tmp_path / "saved")
    return {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}


@pytest.fixture
def shared(hub, saved):
    """The hub, with a public repository that holds the features."""
    hub.repositories[REPO] = Repository()
    hub.repositories[REPO].add("main", saved)
    return hub


def test_what_is_pushed_comes_back_bit_for_bit(owner, features, language, saved):
    address = features.push_to_hub(REPO, commit_message="Features of a key matrix")
    repository = owner.repositories[REPO]
    commit = repository.branches["main"][0]
    assert address == f"{owner.address}/{REPO}/commit/{commit}"
    assert repository.messages == ["Features of a key matrix"]
    files = repository.commits[commit]
    assert set(files) == {"config.json", "features.safetensors", "README.md", "features.png"}
    assert {name: files[name] for name in saved} == saved
    found = pf.load(REPO, model=language)
    for part in ("v_in", "v_out"):
        for one, other in zip(getattr(found, part).tensors, getattr(features, part).tensors, strict=True):
            assert torch.equal(one, other)
    tokens = torch.arange(16).reshape(2, 8)
    assert torch.equal(found.activations(tokens), features.activations(tokens))
    assert dict(found.metrics) == dict(features.metrics)


def test_components_are_pushed_and_come_back(owner, tiny_components, tiny_hooked, tiny_tokens):
    tiny_components.push_to_hub("somebody/components", card=pf.CardSettings(n_features=2))
    repository = owner.repositories["somebody/components"]
    files = repository.commits[repository.branches["main"][0]]
    assert set(files) == {"config.json", "features.safetensors", "README.md", "features.png"}
    assert b"# 7 components of" in files["README.md"]
    found = pf.load("somebody/components", model=tiny_hooked)
    assert type(found) is pf.ParamComponents
    assert torch.equal(found.activations(tiny_tokens[:3]), tiny_components.activations(tiny_tokens[:3]))


def test_a_second_load_fetches_nothing_anew(shared):
    first = pf.load(REPO)
    n_got = len(shared.asked("GET"))
    second = pf.load(REPO)
    assert len(shared.asked("GET")) == n_got
    assert torch.equal(first.v_out.tensors[0], second.v_out.tensors[0])


def test_nothing_but_the_two_files_is_asked_for(shared, cache):
    extras = {"pytorch_model.bin": b"\x80\x04malice", "setup.py": b"raise SystemExit", "modeling.py": b"raise SystemExit"}
    shared.repositories[REPO].add("main", extras)
    pf.load(REPO)
    names = {path.rpartition("/")[2] for path in shared.asked("HEAD")}
    assert names == {"config.json", "features.safetensors"}
    assert {path.name for path in cache.glob("**/snapshots/*/*")} == names
    assert not any(content == path.read_bytes() for path in cache.glob("**/blobs/*") for content in extras.values())


def test_the_fetched_folder_lies_inside_the_repositorys_cache(shared, cache):
    folder, within = fetched_folder(HubPlace(REPO))
    assert within == cache.resolve() / "models--somebody--features"
    assert folder.is_relative_to(within)
    for name in ("config.json", "features.safetensors"):
        assert (folder / name).resolve().is_relative_to(within)


def test_both_files_come_from_one_commit(shared, features):
    other = {"config.json": b"{}", "features.safetensors": b"of another save"}
    shared.then["config.json"] = lambda: shared.repositories[REPO].add("main", other)
    assert torch.equal(pf.load(REPO).v_out.tensors[0], features.v_out.tensors[0])
    assert len(shared.repositories[REPO].branches["main"]) == 2


def test_a_revision_is_a_branch_or_a_commit(shared, features):
    repository = shared.repositories[REPO]
    repository.branches["good"] = list(repository.branches["main"])
    commit = repository.commit("good")
    repository.add("main", {"config.json": b"{}"})
    for found in (pf.load(REPO, revision="good"), pf.load(f"{REPO}@good"), pf.load(f"{REPO}@{commit}", revision=commit)):
        assert torch.equal(found.v_out.tensors[0], features.v_out.tensors[0])
    with pytest.raises(StoreError, match="config.json"):
        pf.load(REPO)
    with pytest.raises(
        HubNotFoundError,
        match=f"There is no folder '{REPO}' here; repository '{REPO}@none' has no such revision. Give a branch",
    ):
        pf.load(f"{REPO}@none")
    with pytest.raises(SettingError, match="names one revision and revision='b' another"):
        pf.load(f"{REPO}@a", revision="b")


def test_a_private_repository_opens_to_its_token_alone(shared, features):
    shared.repositories[REPO].is_private = True
    with pytest.raises(
        HubNotFoundError, match="not on the Hugging Face hub, or is private .*`hf auth login`, or give token="
    ):
        pf.load(REPO)
    with pytest.raises(HubNotFoundError):
        pf.load(REPO, token="hf_of_another")
    assert torch.equal(pf.load(REPO, token=TOKEN).v_out.tensors[0], features.v_out.tensors[0])


def test_conditions_are_named(shared):
    shared.repositories[REPO].is_gated = True
    with pytest.raises(HubAccessError, match="asks its readers to accept conditions first"):
        pf.load(REPO)


def test_repositories_without_features_are_named(shared):
    with pytest.raises(HubNotFoundError, match="repository 'somebody/else' is not on the Hugging Face hub, or is private"):
        pf.load("somebody/else")
    shared.repositories["somebody/half"] = Repository()
    shared.repositories["somebody/half"].add("main", {"config.json": b"{}"})
    with pytest.raises(HubNotFoundError, match="lacks a file .*config.json and features.safetensors at the top"):
        pf.load("somebody/half")


def test_a_file_that_was_edited_on_the_hub_is_refused(shared, saved):
    shared.repositories[REPO].add("main", {"features.safetensors": saved["features.safetensors"][:-1] + b"\x01"})
    with pytest.raises(StoreError, match="does not match the checksum"):
        pf.load(REPO)


def test_names_that_the_hub_does_not_accept(hub):
    with pytest.raises(SettingError, match="is no name that the hub accepts"):
        pf.load("somebody/a--b")
    with pytest.raises(SourceError, match="There is no 'features' here, and features on the Hugging Face hub have an owner"):
        pf.load("features")
    assert hub.requests == []


def test_what_is_here_or_reads_like_a_path_is_not_looked_up(hub, features, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    features.save_pretrained(tmp_path / "somebody" / "features")
    assert pf.load(REPO).n_features == features.n_features
    for gone in ("./gone", "somebody/gone", str(tmp_path / "gone"), "a/b/c", "./" + "x" * 5000, "~nobody-here/x"):
        with pytest.raises(SourceError, match="not looked up on the Hugging Face hub since"):
            pf.load(gone)
    with pytest.raises(SettingError, match="revision='main' belongs to features on the hub"):
        pf.load(REPO, revision="main")
    with pytest.raises(SettingError, match="revision='main' belongs to features on the hub"):
        pf.load(f"{REPO}@main")
    with pytest.raises(StoreError, match="holds no config.json"):
        pf.load(tmp_path / "gone")
    assert hub.requests == []


@pytest.fixture
def unreachable(shared, monkeypatch):
    """A hub that listens no more; retries wait for nothing."""
    import huggingface_hub
    from huggingface_hub.utils import _http

    def cut():
        shared.shutdown()
        shared.server_close()
        huggingface_hub.close_session()

    monkeypatch.setattr(_http.time, "sleep", lambda _: None)
    return cut


def test_without_the_hub_what_was_fetched_is_taken(shared, features, unreachable):
    pf.load(REPO)
    unreachable()
    assert torch.equal(pf.load(REPO).v_out.tensors[0], features.v_out.tensors[0])
    with pytest.raises(
        HubOfflineError, match="'somebody/else' was not reached on the Hugging Face hub, and is not in the cache. Check"
    ):
        pf.load("somebody/else")
    with pytest.raises(HubOfflineError, match=f"Repository '{REPO}' was not reached on the Hugging Face hub"):
        features.push_to_hub(REPO, card=None, token=TOKEN)


def test_offline_mode_asks_nobody(shared, features, monkeypatch):
    pf.load(REPO)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    n_asked = len(shared.requests)
    assert pf.load(REPO).n_features == features.n_features
    with pytest.raises(HubOfflineError, match="HF_HUB_OFFLINE"):
        pf.load("somebody/else")
    with pytest.raises(HubOfflineError, match="HF_HUB_OFFLINE"):
        features.push_to_hub(REPO, card=None, token=TOKEN)
    assert len(shared.requests) == n_asked


def test_without_the_extra_the_install_is_named(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: pf.load(REPO), lambda: features.push_to_hub(REPO, card=None)):
        with pytest.raises(MissingExtraError, match=re.escape('pip install "param_features[hf]"')):
            call()


def test_nobody_and_strangers_may_not_push(hub, features):
    with pytest.raises(HubAccessError, match="closed to this caller: no token, or a wrong one.*`hf auth login`"):
        features.push_to_hub(REPO, card=None)
    with pytest.raises(HubAccessError, match="this token may not do that"):
        features.push_to_hub("somebody-else/features", card=None, token=TOKEN)
    assert hub.repositories == {}


def test_of_several_processes_the_main_one_pushes(owner, features, monkeypatch):
    monkeypatch.setattr("param_features.sharing.pushing.launched", lambda: Processes(2, 1))
    assert features.push_to_hub(REPO) == ""
    assert owner.requests == []


def test_a_wrong_name_is_refused_before_anything_is_asked(hub, features):
    for name in ("features", "a/b/c", "./here", "", "a b/c"):
        with pytest.raises(SettingError, match="is no name of a repository. Give 'owner/name'"):
            features.push_to_hub(name, token=TOKEN)
    assert hub.requests == []


def test_private_is_kept_or_refused(owner, features):
    features.push_to_hub(REPO, card=None, private=True)
    features.push_to_hub(REPO, card=BARE, private=True)  # again, now that it is there
    assert owner.repositories[REPO].is_private
    assert len(owner.repositories[REPO].branches["main"]) == 2
    owner.repositories["somebody/open"] = Repository()
    with pytest.raises(SettingError, match="'somebody/open' is on the hub already and public"):
        features.push_to_hub("somebody/open", card=None, private=True)
    assert owner.repositories["somebody/open"].commits == {}


def test_a_push_goes_to_a_branch_or_a_pull_request(owner, features):
    features.push_to_hub(REPO, card=None)
    features.push_to_hub(REPO, card=BARE, branch="step-100")
    repository = owner.repositories[REPO]
    assert set(repository.commits[repository.commit("main")]) == {"config.json", "features.safetensors"}
    assert "README.md" in repository.commits[repository.commit("step-100")]
    assert pf.load(f"{REPO}@step-100").n_features == features.n_features
    assert features.push_to_hub(REPO, card=BARE, create_pr=True) == f"{owner.address}/{REPO}/discussions/1"


def test_without_a_card_the_one_on_the_hub_stays(owner, features):
    owner.repositories[REPO] = Repository()
    owner.repositories[REPO].add("main", {"README.md": b"written by hand"})
    features.push_to_hub(REPO, card=None)
    repository = owner.repositories[REPO]
    assert repository.commits[repository.commit("main")]["README.md"] == b"written by hand"


def test_refusals_of_the_hub_are_named(owner, features, saved):
    wrong = pf.CardSettings(license="no-license-that-the-hub-knows", is_illustrated=False)
    with pytest.raises(SettingError, match='does not take the card .*"license" must be one of a list'):
        features.push_to_hub(REPO, card=wrong)
    owner.broken["/commit/"] = 418
    with pytest.raises(HubError, match="answered with status 418"):
        features.push_to_hub(REPO, card=None)
    owner.broken[hashlib.sha256(saved["features.safetensors"]).hexdigest()] = 403
    with pytest.raises(HubError, match="did not take a file"):
        features.push_to_hub(REPO, card=None)
    assert owner.repositories[REPO].commits == {}
