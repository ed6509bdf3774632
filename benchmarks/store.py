"""The store of gradients: how it is best read, and what a fit from it takes.

python -m benchmarks.store reading [FOLDER]     ways of reading random rows: time, and growth of peak resident memory
python -m benchmarks.store memory [FOLDER] [N] [STEPS] [N_FEATURES]
                                                N samples of W_K of a random model of GPT-2 small's shape: harvest, decompose
python -m benchmarks.store principal [FOLDER]   principal directions by slices, and held whole: error, CPU s, peak
python -m benchmarks.store million FOLDER [N]   a million samples (or N, for a slice of it) of a key matrix of the real model

Peaks are `ru_maxrss` of processes of their own. FOLDER (a temporary one) needs 2 GB, 100 kB a sample, 0.4 GB, 8 kB
a sample and 100 MB. The real model lies in ../shared/real beside the repository. `million` and `memory` decompose with as
many threads as torch takes, the rest with one.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.stories import stories_in

N_POS, N_FEATURES, STEPS = 16, 1000, 200


def peak_mib() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(*arguments: object) -> subprocess.Popen:
    """This script with other arguments, beside this process."""
    return subprocess.Popen([sys.executable, "-m", "benchmarks.store", *map(str, arguments)])


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

    from param_features.gradients.disk.shards import ShardFile

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


def memory(folder: Path, n_samples: int, steps: int = STEPS, n_features: int = N_FEATURES) -> None:
    """Harvest in one process and decompose in another."""
    in_process("harvest", folder / f"store-{n_samples}", n_samples).wait()
    in_process("decompose", folder / f"store-{n_samples}", n_samples, steps, n_features).wait()


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


def decompose(folder: Path, n_samples: int, steps: int, n_features: int) -> None:
    """From the store to saved features; prints each stage's CPU seconds and the peak so far."""
    import param_features as pf
    from param_features.fit import GradientDictionary
    from param_features.measure import controls
    from param_features.run import decomposition as pipeline

    stages = ((pf.FactorStore, "open"), (pipeline, "fit_l3d"), (GradientDictionary, "error"))
    stages += ((controls, "principal_dictionary"), (controls, "dictionary_error"))
    for owner, name in stages:
        setattr(owner, name, timed(name, getattr(owner, name)))
    model, _, _ = gpt2(n_samples // N_POS)
    start = time.perf_counter()
    features = timed("decompose", pf.decompose)(model, store=folder, n_features=n_features, steps=steps, progress=False)
    timed("save", features.save_pretrained)(folder.with_name(folder.name + "-features"))
    print(f"{features}\n{steps} steps, {time.perf_counter() - start:.0f} s in all, peak {peak_mib():,.0f} MiB", flush=True)


def timed(name: str, function: Callable) -> Callable:
    """The function, which then says what it took."""

    def run(*args: object, **kwargs: object) -> object:
        start, seconds = time.process_time(), time.perf_counter()
        found = function(*args, **kwargs)
        took = f"{time.process_time() - start:,.0f} CPU s, {time.perf_counter() - seconds:,.0f} s"
        value = f" = {found:.4f}" if isinstance(found, float) else ""
        print(f"{name}{value}: {took}, peak so far {peak_mib():,.0f} MiB", flush=True)
        return found

    return run


def principal(folder: Path) -> None:
    """A table: held-out error and CPU seconds of either way, on gradients of an MLP matrix of the real model."""
    import param_features as pf

    model, module = stories()
    tokens = module.load_tokens()
    pf.harvest(model, "blocks.2.mlp.W_in", tokens, directory=folder / "real", n_samples=8000, progress=False)
    print(
        "| samples | directions | way | held-out error at l0 = a twentieth | CPU s | peak MiB |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for n in (20, 50, 150):
        for way in ("whole", "slices"):
            in_process("one-principal", folder / "real", n, way).wait()


def one_principal(folder: Path, n: int, way: str) -> None:
    """One row of the table."""
    import param_features as pf
    from param_features.measure.controls import ControlDictionary, dictionary_error, principal_directions
    from param_features.measure.principal import sliced_principal

    store, generator, start = pf.FactorStore.open(folder), torch.Generator().manual_seed(0), time.process_time()
    if way == "slices":
        dictionary = sliced_principal(store.train, n, generator)
    else:
        dictionary = ControlDictionary.of_rows(principal_directions(store.train, n, generator))
    error = dictionary_error(dictionary, store.held_out, n / 20, is_pursued=True)
    took = time.process_time() - start
    print(f"| {store.train.n_samples:,} | {n} | {way} | {error:.4f} | {took:.0f} | {peak_mib():,.0f} |", flush=True)


STRIDE = 10
"""Tokens from one window of the stories to the next."""


def million(folder: Path, n_samples: int = 1_000_000) -> None:
    """Harvest them; prints where the time goes, the disk that they take, and what a million would take at this pace.

    The stories have 191,488 (row, position) samples, fewer than a million. A window of 64 tokens therefore starts at every
    tenth token: 18,000 rows. A token is met in six windows, at other positions, with other text before it and with other
    references. So these are a million different gradients of 200,000 tokens of text, and held-out windows share their text
    with training windows: good for timing, not for scores.
    """
    import param_features as pf
    from param_features.gradients.disk import shards

    clock: dict[str, float] = {}
    shards.checksum = clocked("checksum", shards.checksum, clock)
    for name in ("add", "finish"):
        setattr(shards.ShardWriter, name, clocked(name, getattr(shards.ShardWriter, name), clock))
    model, tokens = windows(-(-n_samples // 64) if n_samples < 10**6 else None)
    start, wall = time.process_time(), time.perf_counter()
    store = pf.harvest(model, "blocks.2.attn.W_K", tokens, directory=folder, n_samples=n_samples, progress=False)
    seconds, took = time.process_time() - start, time.perf_counter() - wall
    n_samples = store.train.n_samples + store.held_out.n_samples
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{len(tokens):,} rows\n{store}\n{n_bytes / n_samples:,.0f} bytes a sample, peak {peak_mib():,.0f} MiB")
    spent = ", ".join(f"{name} {value:.1f}" for name, value in clock.items())
    print(f"{seconds:.0f} CPU s ({spent}), {took:.0f} s on {torch.get_num_threads()} threads")
    minutes, most = seconds / n_samples * 1e6 / 60, took / n_samples * 1e6 / 60
    print(f"a million at this pace: {minutes:.0f} CPU minutes, {most:.0f} minutes")


def clocked(name: str, function: Callable, clock: dict[str, float]) -> Callable:
    """The function, whose CPU seconds are added up under a name."""

    def run(*args: object, **kwargs: object) -> object:
        start = time.process_time()
        found = function(*args, **kwargs)
        clock[name] = clock.get(name, 0) + time.process_time() - start
        return found

    return run


def windows(n_rows: int | None) -> tuple:
    """The real model, and rows of 64 tokens of its stories that overlap."""
    import json

    (model, module), rows = stories(), []
    for story in json.loads((module.HERE / "tinystories_500.json").read_text()):
        ids = model.tokenizer(story)["input_ids"]
        rows += [ids[i : i + 64] for i in range(0, len(ids) - 63, STRIDE)]
    return model, torch.tensor(rows)[:n_rows]


def stories() -> tuple:
    """The real model, and the module that loads it and its texts."""
    module = stories_in(Path(__file__).resolve().parents[2] / "shared" / "real")
    return module.load_hooked(), module


def main(what: str, *arguments: str) -> None:
    """Run what the command line names."""
    if what not in ("million", "decompose"):
        torch.set_num_threads(1)
    inner = {"rows": rows, "one-way": one_way, "harvest": harvest, "decompose": decompose}
    inner |= {"one-principal": one_principal}
    if what in inner:
        place, *rest = arguments
        inner[what](Path(place), *(int(word) if word.isdigit() else word for word in rest))
        return
    if what == "million":
        million(Path(arguments[0]), *map(int, arguments[1:]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments[0]) if arguments else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        n = [int(word) for word in arguments[1:]]
        {"reading": reading, "principal": principal, "memory": memory}[what](folder, *n)


if __name__ == "__main__":
    main(*sys.argv[1:])
