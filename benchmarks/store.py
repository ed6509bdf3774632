"""The store of gradients: how it is best read, and what a fit from it takes.

python benchmarks/store.py reading [FOLDER]     ways of reading random rows: time, and growth of peak resident memory
python benchmarks/store.py memory [FOLDER] [N]  N samples of W_K of a random model of GPT-2 small's shape: harvest and fit

Peaks are `ru_maxrss` of processes of their own. FOLDER (a temporary one) needs 2 GB, 100 kB a sample and 100 MB.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

N_POS, N_FEATURES, STEPS = 16, 1000, 5


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(*arguments: object) -> subprocess.Popen:
    """This script with other arguments, beside this process."""
    return subprocess.Popen([sys.executable, __file__, *map(str, arguments)])


def reading(folder: Path) -> None:
    """A table of ways of reading 20 batches of 1,024 random rows from a file of 2 GB."""
    print("| row | way | ms a batch | peak grows by MiB |\n|---|---|---|---|", flush=True)
    for d in (12288, 512):
        path = folder / f"rows-{d}.safetensors"
        in_process("rows", path, d).wait()  # a process's peak begins at that of the one that started it
        for way in ("safe_open", "get_tensor", "store"):
            in_process("one-way", path, way).wait()
        path.unlink()


def rows(path: Path, d: int) -> None:
    """A file of 2 GB."""
    from safetensors.torch import save_file

    save_file({"row": torch.zeros(2**29 // d, dtype=torch.int64), "a": torch.randn(2**29 // d, d)}, path)


def one_way(path: Path, way: str) -> None:
    """One row of the table."""
    from safetensors import safe_open

    from param_features.gradients.shards import ShardFile

    generator = torch.Generator().manual_seed(0)
    file = safe_open(path, "pt")
    n, d = file.get_slice("a").get_shape()
    whole = file.get_tensor("a") if way == "get_tensor" else torch.empty(0)
    part, shard = file.get_slice("a"), ShardFile(path)
    before, start = peak_mib(), time.perf_counter()
    for _ in range(20):
        index = torch.randint(n, (1024,), generator=generator)
        if way == "get_tensor":
            whole[index].sum()
        elif way == "safe_open":
            torch.cat([part[i : i + 1] for i in index.tolist()]).sum()
        else:
            out = torch.empty(1024, d)
            for place, i in enumerate(index.tolist()):
                shard.read_into(out[place : place + 1], "a", i)
            out.sum()
    print(f"| {d * 4:,} bytes | {way} | {(time.perf_counter() - start) * 50:.1f} | {peak_mib() - before:.0f} |", flush=True)


def memory(folder: Path, n_samples: int) -> None:
    """Harvest in one process and fit in another."""
    in_process("harvest", folder / f"store-{n_samples}", n_samples).wait()
    in_process("fit", folder / f"store-{n_samples}").wait()


def gpt2(n_rows: int) -> tuple:
    """A random model of GPT-2 small's shape, one of its key matrices, and random tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    return model, "transformer.h.11.attn.c_attn.weight[k]", torch.randint(50257, (n_rows, N_POS))


def harvest(folder: Path, n_samples: int) -> None:
    """To disk; prints time and peak."""
    import param_features as pf

    start = time.perf_counter()
    model, name, tokens = gpt2(n_samples // N_POS)
    settings = pf.HarvestSettings(batch_size=64)
    store = pf.harvest(model, name, tokens, directory=folder, n_samples=n_samples, settings=settings, progress=False)
    print(f"{store}\nharvested in {time.perf_counter() - start:.0f} s, peak {peak_mib():,.0f} MiB", flush=True)


def fit(folder: Path) -> None:
    """A short fit, its ranking and its held-out error; prints times and peaks."""
    import param_features as pf
    from param_features.decompose import fit_l3d
    from param_features.measure.metrics import fit_error

    start = time.perf_counter()
    store = pf.FactorStore.open(folder)
    print(f"opened and checked in {time.perf_counter() - start:.0f} s, peak {peak_mib():,.0f} MiB", flush=True)
    start = time.perf_counter()
    settings, generator = pf.FitSettings(steps=STEPS), torch.Generator().manual_seed(0)
    sizes = {"n_features": N_FEATURES, "rank": 1, "l0": N_FEATURES / 20}
    found = fit_l3d(store.train, **sizes, settings=settings, generator=generator, progress=False)
    print(f"{STEPS} steps and ranking in {time.perf_counter() - start:.0f} s, peak {peak_mib():,.0f} MiB", flush=True)
    error = fit_error(found.v_in, found.v_out, store.held_out, sizes["l0"], found.encoder)
    print(f"held-out error {error:.3f}, peak {peak_mib():,.0f} MiB", flush=True)


def main(what: str, *arguments: str) -> None:
    """Run what the command line names."""
    torch.set_num_threads(1)
    inner = {"rows": rows, "one-way": one_way, "harvest": harvest, "fit": fit}
    if what in inner:
        place, *rest = arguments
        inner[what](Path(place), *(int(word) if word.isdigit() else word for word in rest))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[0]) if arguments else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        n = int(arguments[1]) if len(arguments) > 1 else 100_000
        {"reading": lambda: reading(folder), "memory": lambda: memory(folder, n)}[what]()


if __name__ == "__main__":
    main(*sys.argv[1:])
