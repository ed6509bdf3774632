"""The stand-in hub, to which huggingface-hub's own client is turned, with a cache and a token of the test's own."""

import pytest

from tests.sharing.stand_in import TOKEN, serving


@pytest.fixture
def cache(tmp_path):
    """The client's cache."""
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, cache):
    """A hub; the client is logged in as nobody."""
    library = pytest.importorskip("huggingface_hub")
    constants = library.constants
    with serving() as server:
        changes = {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "token"),
            "AGENT_HARNESSES_PATH": str(cache / "agents"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,  # the stand-in speaks LFS, which the hub does too
        }
        for name, value in changes.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        library.utils.disable_progress_bars()
        yield server
        library.utils.enable_progress_bars()
        library.close_session()


@pytest.fixture
def owner(hub, monkeypatch):
    """The hub, with the owner's token in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub
