"""A small model's folder, texts for it, and a machine without network."""

import json
import random
import socket

import pytest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """A tiny GPT-2 with a word tokenizer, as save_pretrained leaves it."""
    pytest.importorskip("transformers")
    import torch

    from tests.adapters.zoo import hf_gpt2, tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    hf_gpt2(dtype=torch.float32).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts():
    """Sixty texts of 20 words that the tiny model knows."""
    draw = random.Random(0)
    return [" ".join(f"w{draw.randrange(4, 20)}" for _ in range(20)) for _ in range(60)]


@pytest.fixture(scope="session")
def text_file(texts, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.json"
    path.write_text(json.dumps(texts))
    return path


@pytest.fixture
def attempts(monkeypatch):
    """What tried to reach the network, which answers nothing while the test runs."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError("the test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tried
