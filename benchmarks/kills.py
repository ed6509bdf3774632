"""That kills lose nothing: decompositions of the demo model, killed at random moments of harvest and fit and gone on with.

python -m benchmarks.kills [N] [FOLDER]    N kills (50), as many decompositions as they take

A kill is a SIGKILL to a forked process after a random time. Each decomposition is called again until it ends; its features,
metrics, controls and examples are then compared, bit for bit, with those of one that was never killed and keeps nothing.
"""

import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

import param_features as pf
from param_features.run import resuming

N_STEPS, N_KILLS_EACH = 100, 10
_SPANS = 0.1, 0.6
"""A kill comes within one of these shares of the time that a whole decomposition takes: short ones find the harvest."""

Begin = Callable[..., ForkProcess]
"""Begins a decomposition: where its features go, and where it is kept."""


def beginning() -> Begin:
    """Forks children that have the model, the data and every import."""
    model, tokens = pf.demo.load_model(), pf.demo.tokens(400)
    resuming.SHARD_MIB = 0.5

    def decompose(features: Path, checkpoints: Path | None = None) -> None:
        fitted = pf.decompose(
            model,
            "blocks.2.attn.W_K",
            tokens,
            n_samples=4000,
            harvest=pf.HarvestSettings(batch_size=8),
            n_features=50,
            steps=N_STEPS,
            progress=False,
            checkpoints=None if checkpoints is None else pf.CheckpointSettings(checkpoints, every=0.3),
        )
        fitted.save_pretrained(features)

    def begin(*folders: Path) -> ForkProcess:
        child = get_context("fork").Process(target=decompose, args=folders)
        child.start()
        return child

    return begin


def kills(n_kills: int, folder: Path) -> None:
    """Kill, go on, and compare."""
    begin, start = beginning(), time.perf_counter()
    unbroken = begin(folder / "unbroken")
    unbroken.join()
    assert unbroken.exitcode == 0
    took = time.perf_counter() - start
    print(f"never killed, without checkpoints: {took:.0f} s", flush=True)
    rng, done, n_ended = random.Random(0), Counter(), 0
    while done.total() < n_kills:
        broken = folder / f"broken-{n_ended}"
        most = min(N_KILLS_EACH, n_kills - done.total())
        done += broken_and_ended(begin, broken, most, rng, took)
        assert_same(folder / "unbroken", broken / "features")
        shutil.rmtree(broken)
        n_ended += 1
        print(f"{n_ended} ended with the bits of the one never killed; kills so far: {dict(done)}", flush=True)


def broken_and_ended(begin: Begin, broken: Path, n_kills: int, rng: random.Random, took: float) -> Counter:
    """Where a decomposition was, each time that it was killed; it is begun again until it ends."""
    done = Counter()
    while True:
        child = begin(broken / "features", broken / "kept")
        child.join(rng.uniform(0, rng.choice(_SPANS) * took) if done.total() < n_kills else None)
        if child.exitcode is not None:
            assert child.exitcode == 0
            return done
        child.kill()
        child.join()
        done[stage(broken / "kept")] += 1


def stage(kept: Path) -> str:
    """What a killed decomposition had come to, by its files."""
    manifest, fit = kept / "gradients" / "manifest.json", kept / "fit.safetensors"
    if not manifest.is_file():
        return "before the first shard"
    record = json.loads(manifest.read_text())
    if len(record["whole"]) < len(record["planned"]):
        return "harvest"
    newest = next((path for path in (fit, kept / "fit.before.safetensors") if path.is_file()), None)
    if newest is None:
        return "between harvest and fit"
    return "fit" if n_steps_in(newest) < N_STEPS else "after the fit"


def n_steps_in(path: Path) -> int:
    """Steps that a checkpoint has behind it."""
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("n_steps"))


def assert_same(one: Path, other: Path) -> None:
    """Every tensor, the threshold and every metric."""
    ours, theirs = (load_file(folder / "features.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"{other} differs from an unbroken decomposition"
    records = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    for name in ("metrics", "threshold", "params"):
        assert records[0][name] == records[1][name], f"{name} of {other} differ from those of an unbroken decomposition"


def main(n_kills: str = "50", folder: str = "") -> None:
    """Run what the command line names."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        kills(int(n_kills), Path(folder or temporary))


if __name__ == "__main__":
    main(*sys.argv[1:])
