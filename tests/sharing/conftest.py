"""The stand-in hub, to which huggingface-hub's own client is turned, with a cache and a token of the test's own."""

import pytest
import torch

from tests.adapters.zoo import Language
from tests.models import randomised
from tests.sharing.stand_in import TOKEN, serving


@pytest.fixture
def cache(tmp_path):
    """The client's cache."""
    return tmp_path / "cache"


@pytest.fixture
def hub(monkeypatch, cache):
    """A hub; the client is logged in as nobody."""
    library = pytest.importorskip("huggingface_hub")
    constants = pytest.importorskip("huggingface_hub.constants")
    bars = pytest.importorskip("huggingface_hub.utils")
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
        bars.disable_progress_bars()
        yield server
        bars.enable_progress_bars()
        library.close_session()


@pytest.fixture
def owner(hub, monkeypatch):
    """The hub, with the owner's token in the environment."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


NASTY = (
    "<script>alert(1)</script>", "`", "``````", "|", "\n```\n", "](javascript:alert(1))", "![x](http://x.example/x.png)",
    "$\\frac{$", "**", "<!--", "\u202e", "\u2028# heading", "\x00", "https://x.example", "&lt;", "\\", "</pre>", "漢" * 3,
    "a" * 500, "\r\n---\r\n",
)  # fmt: skip


class NastyTokenizer:
    """Twenty tokens that would break out of Markdown, HTML or matplotlib's formulas."""

    name_or_path = "x"

    def __call__(self, text):
        return {"input_ids": [NASTY.index(text)]}

    def batch_decode(self, rows, **_):
        return ["".join(NASTY[token] for token in row) for row in rows]

    def convert_ids_to_tokens(self, ids):
        return [NASTY[token] for token in ids]


@pytest.fixture(scope="session")
def language():
    """A plain module from tokens to logits."""
    return randomised(Language())


@pytest.fixture(scope="session")
def features(language):
    """A short fit of it, whose tokens are nasty."""
    import param_features as pf

    tokens = torch.randint(20, (40, 8), generator=torch.Generator().manual_seed(1))
    fit = {"n_features": 12, "l0": 2, "steps": 20, "n_samples": 300, "progress": False}
    return pf.decompose(language, "mix.weight", tokens, tokenizer=NastyTokenizer(), **fit)
