"""The folder of a real model: what its `load_stories.py` offers to other benchmarks, and a fit that two of them share."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

import param_features as pf


def stories_in(folder: Path) -> ModuleType:
    """The module `load_stories.py` of a folder, with `load_hooked()`, `load_hf()` and `load_tokens()`.

    Raises:
        SystemExit: The folder holds none.
    """
    path = Path(folder) / "load_stories.py"
    if not path.is_file():
        raise SystemExit(f"{folder} holds no load_stories.py with load_hooked(), load_hf() and load_tokens().")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class StoryFit(NamedTuple):
    """100 features of a key matrix of the real model, the rows that they were fitted to, and 200 others."""

    features: pf.ParamFeatures
    train: Tensor
    held_out: Tensor


def fit_stories(folder: Path, *, n_held_out: int = 200) -> StoryFit:
    """Fit `blocks.2.attn.W_K` to all rows but some, which are drawn at random."""
    stories = stories_in(folder)
    model, tokens = stories.load_hooked(), stories.load_tokens()
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    train, held_out = tokens[order[:-n_held_out]], tokens[order[-n_held_out:]]
    features = pf.decompose(
        model, "blocks.2.attn.W_K", train, n_features=100, l0=5, n_samples=16000, steps=300, seed=0, progress=False
    )
    return StoryFit(features, train, held_out)
