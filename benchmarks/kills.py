"""That kills lose nothing: decompositions of the demo model, killed at random moments of harvest and fit and gone on with.

python benchmarks/kills.py [N] [FOLDER]    N kills (50), as many decompositions as they take; two minutes per ten kills

A kill is a SIGKILL after a random time. Each decomposition is called again until it ends; its features, metrics, controls and
examples are then compared with those of one that was never killed and keeps no checkpoints, bit for bit.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

N_STEPS, N_KILLS_EACH = 150, 10


def in_process(*arguments: object) -> subprocess.Popen:
    """This script with other arguments, beside this process; returns once it begins to work."""
    child = subprocess.Popen([sys.executable, __file__, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begins\n"
    return child


def decompose(features: Path, checkpoint_dir: str = "") -> None:
    """A small decomposition of many shards, whose features are saved."""
    import torch

    import param_features as pf
    from param_features import resuming

    torch.set_num_threads(1)
    resuming.SHARD_MIB = 0.5
    kept = {"checkpoint_dir": checkpoint_dir, "checkpoint_every": 0.1} if checkpoint_dir else {}
    model, tokens = pf.demo.load_model(), pf.demo.tokens(400)
    print("begins", flush=True)
    call = {"n_samples": 4000, "harvest": pf.HarvestSettings(batch_size=8), "n_features": 50, "steps": N_STEPS}
    pf.decompose(model, "blocks.2.attn.W_K", tokens, progress=False, **call, **kept).save_pretrained(features)


def kills(n_kills: int, folder: Path) -> None:
    """Kill, go on, and compare."""
    import time

    start = time.perf_counter()
    assert in_process("decompose", folder / "unbroken").wait() == 0
    took = time.perf_counter() - start
    print(f"unbroken, without checkpoints: {took:.0f} s with its imports", flush=True)
    rng, done, n_ended = random.Random(0), Counter(), 0
    while done.total() < n_kills:
        broken = folder / f"broken-{n_ended}"
        most = min(N_KILLS_EACH, n_kills - done.total())
        done += broken_and_ended(broken, most, rng, took)
        assert_same(folder / "unbroken", broken / "features")
        shutil.rmtree(broken)
        n_ended += 1
        print(f"{n_ended} ended with the bits of the unbroken one; killed so far: {dict(done)}", flush=True)


def broken_and_ended(broken: Path, n_kills: int, rng: random.Random, took: float) -> Counter:
    """Where a decomposition was, each time that it was killed; it is called again until it ends."""
    done = Counter()
    while (child := in_process("decompose", broken / "features", broken / "kept")).poll() is None:
        try:
            child.wait(rng.uniform(0, 0.3 * took) if done.total() < n_kills else None)
            break
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            done[stage(broken / "kept")] += 1
    assert child.returncode == 0
    return done


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
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int(file.get_tensor("n_steps"))


def assert_same(one: Path, other: Path) -> None:
    """Every tensor, the threshold and every metric."""
    import torch
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "features.safetensors") for folder in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), f"{other} differs from an unbroken decomposition"
    records = [json.loads((folder / "config.json").read_text()) for folder in (one, other)]
    for name in ("metrics", "threshold", "params"):
        assert records[0][name] == records[1][name], f"{name} of {other} differ from those of an unbroken decomposition"


def main(*arguments: str) -> None:
    """Run what the command line names."""
    if arguments and arguments[0] == "decompose":
        decompose(Path(arguments[1]), *arguments[2:])
        return
    n_kills = int(arguments[0]) if arguments else 50
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[1]) if len(arguments) > 1 else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        kills(n_kills, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
