"""Shared fixtures. Every shape annotation of the package is checked while the tests run."""

import gc
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

from tests import check_anew
from tests.browser import chromium, page, traffic
from tests.models import Classifier, hooked_transformer

__all__ = ["chromium", "page", "traffic"]

install_import_hook(["param_features"], "tests.checked")

_seen: set[str] = set()
"""Tests of which a case has run in this process."""


def pytest_configure(config):
    """Tiny fits are matched by their controls, which a notice says: not an error here, as other warnings are.

    Written here since the names of filters in pyproject.toml are imported before the hook that checks shapes.
    """
    config.addinivalue_line("filterwarnings", "ignore::param_features.errors.Notice")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is collected stays to the end: looking through it for garbage again and again takes a quarter of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Count lines in the first case of each fast test alone, fixtures included: counting takes a quarter of the time."""
    counting = getattr(item.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    test = item.nodeid.partition("[")[0]
    if counting is None or not (item.get_closest_marker("slow") or test in _seen):
        _seen.add(test)
        return (yield)
    counting.pause()
    try:
        return (yield)
    finally:
        counting.resume()


@pytest.fixture(autouse=True)
def _checks():
    check_anew()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tiny tensors are no faster on more threads, and far slower where another process shares the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def few_metrics(monkeypatch):
    """Metrics of components on two rows, with one step of the adversary: for tests that do not look at their values."""
    from param_features.measure import component_metrics

    quick = partial(component_metrics, steps=(1,), n_rows=2, n_draws=1)
    monkeypatch.setattr("param_features.run.from_weights.component_metrics", quick)
    for caller in ("decomposition", "sweeping.components"):  # steps that no test counts
        monkeypatch.setattr(f"param_features.run.{caller}.check_room", lambda _: None)


@pytest.fixture
def command(capsys):
    """Run a command in this process: its status, output and errors."""
    from param_features.cli.app import main

    def run(*arguments, program=main):
        with pytest.raises(SystemExit) as ended:
            program([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def tiny_hooked():
    """A random HookedTransformer in float64 whose LayerNorm weights are not 1."""
    return hooked_transformer()


@pytest.fixture(scope="session")
def tiny_tokens():
    return torch.randint(20, (40, 10), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny_features(tiny_hooked, tiny_tokens):
    """A short tied fit, so that activations are derivatives along the directions themselves."""
    import param_features as pf

    fit = pf.FitSettings(steps=30, batch_size=64, selection="l1", rank=2)
    call = {"n_features": 6, "l0": 2, "fit": fit, "progress": False}
    return pf.decompose(tiny_hooked, "blocks.0.attn.W_K", tiny_tokens, **call)


@pytest.fixture(scope="session")
def tiny_components(tiny_hooked, tiny_tokens):
    """Components of two matrices that nobody trained."""
    from tests.components import made_components

    return made_components(tiny_hooked, {"blocks.0.attn.W_K": 3, "blocks.0.mlp.W_in": 4}, tiny_tokens)


@pytest.fixture
def classifier():
    return Classifier()


@pytest.fixture(scope="session")
def images():
    return torch.randn(60, 1, 6, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def real_folder():
    """The real model and stories; tests that need them are skipped visibly where they are missing."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"the real model is not at {folder}")
    return folder


@pytest.fixture(scope="session")
def stories(real_folder):
    """The module that loads the real model and its texts."""
    sys.path.insert(0, str(real_folder))
    try:
        import load_stories
    finally:
        sys.path.remove(str(real_folder))
    return load_stories
