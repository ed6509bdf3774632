"""What `pf.estimate` says beside what `pf.decompose` takes: time, memory and disk, each run in a process of its own.

    python -m benchmarks.estimate FOLDER [--only WORD] [--store]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`; the other models have random weights and shapes of
TinyStories-1M and 8M (GPT-Neo, vocabulary 50,257) and GPT-2 small. Seconds are CPU seconds of one thread, so that a busy
machine does not blur them; peaks are `ru_maxrss`. `--store` harvests to a temporary folder as well, for the size on disk.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import param_features as pf
from benchmarks.stories import stories_in

N_POS = 16
NEO = "transformer.h.4.attn.attention.k_proj.weight"
BLOCK = ["transformer.h.4.attn.attention.[qkv]_proj.weight", "transformer.h.4.attn.attention.out_proj.weight"]
GPT2 = "transformer.h.11.attn.c_attn.weight[k]"
CASES = {
    "stories W_K 100×1": ("stories", "blocks.2.attn.W_K", 100, 1, 16_000, 100),
    "stories attn 100×4": ("stories", "blocks.2.attn.W_[QKVO]", 100, 4, 2_000, 20),
    "stories MLP 100×25": ("stories", "blocks.2.mlp.W_out", 100, 25, 2_000, 20),
    "1M W_K 100×1": ("1M", NEO, 100, 1, 1_600, 30),
    "1M W_K 100×25": ("1M", NEO, 100, 25, 1_600, 8),
    "8M attn 100×1": ("8M", BLOCK, 100, 1, 480, 10),
    "8M MLP 100×4": ("8M", "transformer.h.4.mlp.c_fc.weight", 100, 4, 480, 10),
    "GPT-2 W_K 100×1": ("GPT-2", GPT2, 100, 1, 320, 5),
    "stories W_K 1000×1": ("stories", "blocks.2.attn.W_K", 1000, 1, 3_000, 5),
}


def model_and_tokens(kind: str, folder: Path, n_samples: int) -> tuple:
    """The model of a case, and data that give as many samples."""
    torch.manual_seed(0)
    if kind == "stories":
        stories = stories_in(folder)
        return stories.load_hooked(), stories.load_tokens()
    tokens = torch.randint(50257, (n_samples // N_POS, N_POS))
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

    if kind == "GPT-2":
        return GPT2LMHeadModel(GPT2Config()).eval(), tokens
    d_model = {"1M": 64, "8M": 256}[kind]
    layers = {"num_layers": 8, "attention_types": [[["global", "local"], 4]], "num_heads": 16}
    return GPTNeoForCausalLM(GPTNeoConfig(hidden_size=d_model, intermediate_size=4 * d_model, **layers)).eval(), tokens


def one(case: str, what: str, folder: Path) -> dict:
    """One side of one row, in this process."""
    kind, params, n_features, rank, n_samples, steps = CASES[case]
    model, tokens = model_and_tokens(kind, folder, n_samples)
    start = time.process_time()
    if what == "estimate":
        estimate = pf.estimate(
            model,
            params,
            tokens,
            n_features=n_features,
            fit=pf.FitSettings(rank=rank),
            n_samples=n_samples,
            steps=steps,
            clock=time.process_time,
        )
        return {
            "seconds": dict(estimate.seconds),
            "total": estimate.total_seconds,
            "peak": estimate.total_peak_bytes,
            "above": estimate.peak_bytes,
            "disk": estimate.disk_bytes,
            "took": time.process_time() - start,
        }
    before = _resident()
    if what == "disk":
        with tempfile.TemporaryDirectory() as place:
            pf.harvest(model, params, tokens, directory=place, n_samples=n_samples, progress=False)
            return {"disk": sum(file.stat().st_size for file in Path(place).iterdir())}
    pf.decompose(
        model,
        params,
        tokens,
        n_features=n_features,
        fit=pf.FitSettings(rank=rank),
        n_samples=n_samples,
        steps=steps,
        progress=False,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"total": time.process_time() - start, "peak": peak, "above": peak - before}


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def in_process(case: str, what: str, folder: Path) -> dict:
    """One side of one row, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.estimate", str(folder), "--case", case, "--what", what]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def row(case: str, folder: Path, *, with_store: bool) -> str:
    """Estimate, truth and their ratio, for one case."""
    estimate, truth = in_process(case, "estimate", folder), in_process(case, "truth", folder)
    cells = [f"{estimate['total']:.0f} / {truth['total']:.0f} s ({estimate['total'] / truth['total']:.2f})"]
    for name in ("peak", "above"):
        cells.append(f"{estimate[name] / 2**20:.0f} / {truth[name] / 2**20:.0f} MiB ({estimate[name] / truth[name]:.2f})")
    if with_store:
        disk = in_process(case, "disk", folder)["disk"]
        cells.append(f"{estimate['disk'] / 2**20:.0f} / {disk / 2**20:.0f} MiB ({estimate['disk'] / disk:.2f})")
    return f"| {case} | {' | '.join(cells)} | {estimate['took']:.1f} s |"


def main() -> None:
    """Print the table, a row as it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--store", action="store_true", help="the size on disk too")
    parser.add_argument("--case", choices=list(CASES), help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("estimate", "truth", "disk"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        print(json.dumps(one(options.case, options.what, options.folder)))
        return
    disk = " disk |" if options.store else ""
    print(f"| case (estimate / truth) | time | peak of the process | above its start |{disk} the estimate took |")
    print("|---|" + "---|" * (5 if options.store else 4), flush=True)
    for case in CASES:
        if options.only in case:
            print(row(case, options.folder, with_store=options.store), flush=True)


if __name__ == "__main__":
    main()
