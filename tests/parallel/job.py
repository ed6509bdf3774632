"""What the processes run: every kind of fit and two stores of a small model, each process's results in its own file.

`python -m tests.parallel.job FOLDER` runs it in one process; accelerate launches it in several. After the folder, `dies` and
`goes-on` make it one fit that keeps checkpoints, in whose middle the last process dies, or not.
"""

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

import param_features as pf
from param_features.machine import Processes, launched
from tests.models import hooked_transformer
from tests.stops import stopped_after

W_K = "blocks.0.attn.W_K"
HARVEST = {"n_samples": 200, "progress": False}
KINDS = {
    "pursuit": {"reference": "label", "fit": pf.FitSettings(steps=30, batch_size=64)},
    "top_k": {"fit": pf.FitSettings(steps=30, batch_size=65, selection="top_k", dead_after=3)},
    "l1": {"reference": "mean", "fit": pf.FitSettings(steps=30, batch_size=64, selection="l1")},
    "hessian": {"method": "hessian", "steps": 5},
    "cp": {"fit": pf.FitSettings(format="cp"), "params": [W_K, "blocks.1.mlp.W_in"], "steps": 10},
    "background": {"steps": 10},
    "components": {
        "method": "components",
        "params": [W_K, "blocks.1.mlp.W_in"],
        "fit": pf.ComponentSettings(
            steps=6, batch_size=70, one_at_a_time_weight=1, subset_weight=1, adversarial_weight=1, frequency_weight=1e-3
        ),
        "l0": None,
        "harvest": None,
    },
    "few": {"fit": pf.FitSettings(steps=5, batch_size=1)},
}
"""Settings of each fit."""

REFERENCES = ("sample", "label")


def run(folder: Path) -> None:
    """All of it."""
    torch.set_num_threads(1)
    model, tokens, index = hooked_transformer(), rows(), launched().index
    for reference in REFERENCES:
        settings = {"shard_mib": 0.05, "settings": pf.HarvestSettings(batch_size=4), "reference": reference}
        pf.harvest(model, W_K, tokens, directory=folder / f"store {reference}", **HARVEST, **settings)
    for kind, settings in KINDS.items():
        more = {"background": tokens[:20].flip(1)} if kind == "background" else {}
        features = fitted(model, tokens, **(settings | more))
        features.save_pretrained(folder / f"saved {kind}")
        torch.save(found(features), folder / f"{kind} {index}.pt")
    with pf.alone():
        assert launched() == Processes()


def resumable(folder: Path, *, dies_at: int | None = None) -> None:
    """The fit `pursuit` with a checkpoint after every step; in that step the last process dies, as by a SIGKILL."""
    torch.set_num_threads(1)
    processes, checkpoints = launched(), pf.CheckpointSettings(folder / "kept", every=0)
    is_last = processes.index == processes.n - 1
    with stopped_after(dies_at, stop=die) if is_last and dies_at is not None else nullcontext():
        features = fitted(hooked_transformer(), rows(), **KINDS["pursuit"], checkpoints=checkpoints)
    torch.save(found(features), folder / f"pursuit {processes.index}.pt")


def rows() -> torch.Tensor:
    """Every process's data."""
    return torch.randint(20, (40, 10), generator=torch.Generator().manual_seed(1))


def fitted(model, tokens: torch.Tensor, **settings) -> pf.ParamFeatures:
    """One of the fits."""
    call = {"params": W_K, "tokens": tokens, "harvest": pf.HarvestSettings(batch_size=4), "n_features": 6, "l0": 2}
    return pf.decompose(model, **(call | HARVEST | settings))


def die() -> None:
    """As by the machine's own killer."""
    os.kill(os.getpid(), signal.SIGKILL)


def found(features: pf.ParamFeatures) -> dict:
    """All numbers that a fit found."""
    return {
        "tensors": features.v_out.tensors + features.v_in.tensors,
        "threshold": features.threshold,
        "references": features.references,
        "metrics": dict(features.metrics),
    }


if __name__ == "__main__":
    given, then = Path(sys.argv[1]), sys.argv[2:]
    if then:
        resumable(given, dies_at=12 if then == ["dies"] else None)
    else:
        run(given)
