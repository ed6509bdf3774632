"""What the processes run: every kind of fit and two stores of a small model, each process's results in its own file.

`python -m tests.parallel.job FOLDER` runs it in one process; accelerate launches it in several.
"""

import os
import signal
import sys
from pathlib import Path

import torch

import param_features as pf
from param_features.processes import Processes, launched
from tests.models import hooked_transformer

W_K = "blocks.0.attn.W_K"
HARVEST = {"n_samples": 200, "progress": False}
KINDS = {
    "pursuit": {"reference": "label", "fit": pf.FitSettings(steps=30, batch_size=64)},
    "top_k": {"fit": pf.FitSettings(steps=30, batch_size=65, selection="top_k", dead_after=3)},
    "l1": {"reference": "mean", "fit": pf.FitSettings(steps=30, batch_size=64, selection="l1")},
    "hessian": {"method": "hessian", "steps": 5},
    "cp": {"format": "cp", "params": [W_K, "blocks.1.mlp.W_in"], "steps": 10},
    "background": {"steps": 10},
    "few": {"fit": pf.FitSettings(steps=5, batch_size=1)},
}
"""Settings of each fit."""

REFERENCES = ("sample", "label")


def run(folder: Path, *, stop_after: str | None = None) -> None:
    """All of it; with `stop_after` the second process dies there, as by a SIGKILL."""
    torch.set_num_threads(1)
    processes = launched()
    model = hooked_transformer()
    tokens = torch.randint(20, (40, 10), generator=torch.Generator().manual_seed(1))
    for reference in REFERENCES:
        settings = {"shard_mib": 0.05, "settings": pf.HarvestSettings(batch_size=4), "reference": reference}
        pf.harvest(model, W_K, tokens, directory=folder / f"store {reference}", **HARVEST, **settings)
    for kind, settings in KINDS.items():
        if kind == stop_after and processes.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        more = {"background": tokens[:20].flip(1)} if kind == "background" else {}
        call = {"params": W_K, "tokens": tokens, "harvest": pf.HarvestSettings(batch_size=4), "n_features": 6, "l0": 2}
        features = pf.decompose(model, **(call | HARVEST | settings | more))
        features.save_pretrained(folder / f"saved {kind}")
        torch.save(found(features), folder / f"{kind} {processes.index}.pt")
    with pf.alone():
        assert launched() == Processes()


def found(features: pf.ParamFeatures) -> dict:
    """All numbers that a fit found."""
    return {
        "tensors": features.v_out.tensors + features.v_in.tensors,
        "threshold": features.threshold,
        "references": features.references,
        "metrics": dict(features.metrics),
    }


if __name__ == "__main__":
    run(Path(sys.argv[1]), stop_after=sys.argv[2] if len(sys.argv) > 2 else None)
