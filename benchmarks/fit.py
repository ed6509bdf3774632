"""Steps of a fit per CPU second and peak memory, beside the direct algorithm and an SAE: docs/measurements/speed.md.

    python -m benchmarks.fit [--folder FOLDER] [--shape NAME …] [--subset NAME …] [--features N …] [--rank N …]

FOLDER holds `load_stories.py` (stories260K is left out without it). One thread; 256 samples a step, one for each of 16
tokens of 16 sequences; l0 is n_features / 20. Variants take turns in one process, some steps at a time, medians over the
turns; peaks are `ru_maxrss` of a process for each variant. `direct` is L3D's algorithm as its code takes it: dense
gradients, dense contractions with the factors of V_in and V_out from left to right, the reconstruction built, squared
error, backward, AdamW. `ordered` is the same in the cheapest order: directions are built from their factors, then
multiplied as matrices. `top_k` and `pursuit` are this library's with these encoders, `sae` a BatchTopK SAE of sae-lens on
the residual stream. The losses of direct, ordered and top_k are compared before they are timed.

Left out (–): what by its sizes needs more than 6 GiB, or more than 10^12 multiplications and additions a step.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.stories import stories_in

N_SEQUENCES, N_POS, VOCABULARY, BLOCK = 16, 16, 50257, 4
N_SAMPLES = N_SEQUENCES * N_POS
MOST_BYTES, MOST_FLOP = 6 * 2**30, 1e12
TURNS, SECONDS = 3, 0.3
VARIANTS = ("direct", "ordered", "top_k", "pursuit", "sae")
D_MODEL = {"stories260K": 64, "TinyStories-1M": 64, "TinyStories-8M": 256, "GPT-2 small": 768}
NEO = {
    "W_K": ["attn.attention.k_proj.weight"],
    "attention": [f"attn.attention.{name}_proj.weight" for name in ("q", "k", "v", "out")],
    "MLP": ["mlp.c_fc.weight", "mlp.c_proj.weight"],
}
LLAMA = {
    "W_K": ["self_attn.k_proj.weight"],
    "attention": [f"self_attn.{name}_proj.weight" for name in "qkvo"],
    "MLP": [f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")],
}
GPT2 = {
    "W_K": ["attn.c_attn.weight[k]"],
    "attention": [*(f"attn.c_attn.weight[{name}]" for name in "qkv"), "attn.c_proj.weight"],
    "MLP": ["mlp.c_fc.weight", "mlp.c_proj.weight"],
}


class Case(NamedTuple):
    """One row of the table; `file` holds the batch's gradients."""

    file: str
    shape: str
    subset: str
    n_features: int
    rank: int

    @property
    def l0(self) -> float:
        """Features kept per sample."""
        return self.n_features / 20


def model_and_tokens(shape: str, folder: Path) -> tuple:
    """A model, its tokens, where its chosen block lies, and names of parameters in it."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoConfig, GPTNeoForCausalLM

    torch.manual_seed(0)
    tokens = torch.randint(VOCABULARY, (N_SEQUENCES, N_POS))
    if shape == "stories260K":
        stories = stories_in(folder)
        return stories.load_hf()[0], stories.load_tokens(N_POS, N_SEQUENCES), "model.layers.2.", LLAMA
    if shape == "GPT-2 small":
        return GPT2LMHeadModel(GPT2Config()).eval(), tokens, f"transformer.h.{BLOCK}.", GPT2
    d_model = D_MODEL[shape]
    attention = [[["global", "local"], 4]]
    config = GPTNeoConfig(vocab_size=VOCABULARY, hidden_size=d_model, num_layers=8, num_heads=16, attention_types=attention)
    return GPTNeoForCausalLM(config).eval(), tokens, f"transformer.h.{BLOCK}.", NEO


def harvest(shape: str, folder: str, out: str) -> None:
    """Save the gradients of every position for each subset, as the fit would hold them."""
    from param_features.gradients import Harvester, HarvestSettings, SampleProbe, build_engine, question_of
    from param_features.params import adapter_for, select
    from param_features.problem import ChosenParams, read_problem

    model, tokens, block, subsets = model_and_tokens(shape, Path(folder))
    adapter = adapter_for(model)
    for subset, names in subsets.items():
        chosen = select(adapter.views(), [block + name for name in names], adapter.aliases(), adapter.parts())
        problem = read_problem(ChosenParams(adapter, chosen), tokens, None, reference="sample", divergence="auto")
        engine = build_engine(problem, lambda text: None)
        question = question_of(problem, engine, 4, torch.Generator().manual_seed(0))
        harvester = Harvester(SampleProbe(engine, problem.data), question.divergence, question.drawn, HarvestSettings())
        generator = torch.Generator().manual_seed(0)
        store = harvester.store(problem.data, N_POS, generator, progress=False, title="harvest")
        torch.save(store.rows(slice(None)), Path(out) / f"{shape}-{subset}.pt")


def read(case: Case):
    """The gradients of a case, scaled to a mean square norm of 1, and directions to start from."""
    from param_features.fit.l3d import renormalize
    from param_features.gradients import square_norm
    from param_features.measure.controls import random_directions

    gradients = torch.load(case.file, weights_only=False)
    scale = float(square_norm(gradients).double().mean()) ** -0.5
    for gradient in gradients.values():
        gradient.tensors[0].mul_(scale)
    directions = random_directions(gradients, case.n_features, case.rank, torch.Generator().manual_seed(0))
    renormalize(directions)
    return gradients, directions


class Direct:
    """L3D's step as its code takes it."""

    def __init__(self, gradients, directions, l0: float, *, is_ordered: bool) -> None:
        """Take a batch's gradients and where to start."""
        self.gradients = {name: gradient.dense().matrix for name, gradient in gradients.items()}
        self.names, self.l0, self.is_ordered = list(directions.factors), l0, is_ordered
        self.v_in, self.v_out = (self._leaves(directions) for _ in range(2))
        self.optimizer = torch.optim.AdamW([*self.v_in, *self.v_out], lr=1e-3)

    def _leaves(self, directions) -> list[Tensor]:
        return [tensor.clone().requires_grad_() for tensor in directions.tensors]

    def _parts(self, tensors: list[Tensor]):
        return zip(self.names, zip(tensors[::2], tensors[1::2], strict=True), strict=True)

    def loss(self) -> Tensor:
        """The mean squared error of the dense reconstruction from the largest l0 · batch coordinates."""
        coords = torch.stack([self._overlaps(self.gradients[name], *pair) for name, pair in self._parts(self.v_in)]).sum(0)
        least = coords.detach().abs().flatten().topk(round(self.l0 * len(coords))).values.min()
        kept = coords * (coords.detach().abs() >= least)
        square = torch.zeros(())
        for name, pair in self._parts(self.v_out):
            square = square + (self.gradients[name] - self._rebuilt(kept, *pair)).square().sum()
        return square / len(coords)

    def _overlaps(self, gradients: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if self.is_ordered:
            return gradients.flatten(1) @ (left @ right.mT).flatten(1).T
        return torch.einsum("nikr,kir->nk", torch.einsum("noi,kor->nikr", gradients, left), right)

    def _rebuilt(self, coords: Tensor, left: Tensor, right: Tensor) -> Tensor:
        if self.is_ordered:
            return (coords @ (left @ right.mT).flatten(1)).unflatten(1, (left.shape[1], right.shape[1]))
        return torch.einsum("nkor,kir->noi", torch.einsum("nk,kor->nkor", coords, left), right)

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()


def fit_step(gradients, directions, l0: float, selection: Literal["top_k", "pursuit"]) -> Callable[[], object]:
    """A step of this library's fit; every batch is the same one."""
    from param_features import FitSettings
    from param_features.fit import FitRequest, Trainer
    from param_features.gradients import GradientStore, square_norm

    store = GradientStore(N_SAMPLES, gradients)
    store.add(gradients)
    settings = FitSettings(selection=selection, batch_size=N_SAMPLES, warm_start=0, resample=0)
    n_features, rank = directions.n_features, directions.tensors[0].shape[2]
    trainer = Trainer(store, FitRequest(n_features, rank, l0, settings), torch.Generator().manual_seed(0))
    assert abs(float(square_norm(gradients).mean()) - 1) < 1e-3
    return trainer.step


def sae_step(d_model: int, n_features: int, l0: float) -> Callable[[], object]:
    """A training step of a BatchTopK SAE of sae-lens on random activations."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=d_model, d_sae=n_features, k=l0))
    config = SAETrainerConfig(
        total_training_samples=10**6, train_batch_size_samples=N_SAMPLES, lr=1e-3, lr_end=1e-3, device="cpu",
        lr_warm_up_steps=0, lr_decay_steps=0, dead_feature_window=1000, feature_sampling_window=1000,
    )  # fmt: skip
    trainer, acts = SAETrainer(config, sae, data_provider=iter(())), torch.randn(N_SAMPLES, d_model)
    return lambda: trainer.step(acts)


def made(case: Case, variant: str) -> Callable[[], object]:
    """A variant's step."""
    if variant == "sae":
        return sae_step(D_MODEL[case.shape], case.n_features, case.l0)
    gradients, directions = read(case)
    if variant in ("direct", "ordered"):
        return Direct(gradients, directions, case.l0, is_ordered=variant == "ordered")
    return fit_step(gradients, directions, case.l0, "top_k" if variant == "top_k" else "pursuit")


def fits(case: Case, variant: str) -> bool:
    """Whether a variant stays below the limits: by the sizes of its largest tensors and the products of a step."""
    gradients = torch.load(case.file, weights_only=False)
    sizes = [gradient.matrix_shape for gradient in gradients.values()]
    n_params, sides, rank = sum(o * i for o, i in sizes), sum(o + i for o, i in sizes), case.rank
    dense = N_SAMPLES * n_params
    if variant == "direct":  # left to right: the gradients with one factor, [sample d_in feature rank], and back
        between = N_SAMPLES * case.n_features * rank * max(max(pair) for pair in sizes)
        return 4 * (4 * dense + 2 * between) <= MOST_BYTES and 12 * dense * case.n_features * rank <= MOST_FLOP
    if variant == "ordered":
        built = case.n_features * n_params
        return 4 * (4 * dense + 3 * built) <= MOST_BYTES and 12 * dense * case.n_features <= MOST_FLOP
    if variant == "sae":
        return True
    as_factors = min(N_SAMPLES * N_POS * sides * rank, dense) * case.n_features
    gram = min(rank**2 * sides, n_params) * case.n_features**2
    memory = 4 * 10 * min(N_SAMPLES * N_POS * rank * len(sizes) * case.n_features, case.n_features * n_params)
    return memory <= MOST_BYTES and 6 * as_factors + 6 * gram <= MOST_FLOP


def check_losses(case: Case, variants: list[str]) -> None:
    """All variants with L3D's encoder see the same loss at the same directions."""
    from param_features import FitSettings
    from param_features.fit.l3d import l3d_loss
    from param_features.gradients import square_norm

    gradients, directions = read(case)
    losses = []
    with torch.no_grad():
        for variant in variants:
            if variant in ("direct", "ordered"):
                losses.append(float(Direct(gradients, directions, case.l0, is_ordered=variant == "ordered").loss()))
            elif variant == "top_k":
                dead = torch.zeros(case.n_features, dtype=torch.bool)
                norms, settings = square_norm(gradients), FitSettings(selection="top_k")
                loss = l3d_loss(gradients, norms, directions, directions, l0=case.l0, dead=dead, settings=settings)
                losses.append(float(loss.loss))
    assert max(losses, default=0) - min(losses, default=0) < 1e-4 * max(losses, default=1), (case, variants, losses)


def timed(case: Case) -> dict[str, float]:
    """CPU seconds of a step of each variant that fits, taking turns."""
    variants = [variant for variant in VARIANTS if fits(case, variant)]
    check_losses(case, variants)
    steps = {variant: made(case, variant) for variant in variants}
    first = {variant: cpu_seconds(step, 1) for variant, step in steps.items()}
    counts = {variant: max(1, min(200, int(SECONDS / TURNS / max(first[variant], 1e-4)))) for variant in variants}
    turns = [{variant: cpu_seconds(step, counts[variant]) for variant, step in steps.items()} for _ in range(TURNS)]
    return {variant: statistics.median(turn[variant] for turn in turns) for variant in variants}


def cpu_seconds(step: Callable[[], object], n: int) -> float:
    """Of one step, over some."""
    start = time.process_time()
    for _ in range(n):
        step()
    return (time.process_time() - start) / n


def peak_mib(case: Case, variant: str) -> float:
    """Peak resident memory of this process after three steps of one variant."""
    step = made(case, variant)
    for _ in range(3):
        step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(*arguments: object) -> str:
    """The last line that this script prints with other arguments."""
    command = [sys.executable, "-m", "benchmarks.fit", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def row(case: Case) -> str:
    """A row of the table: steps per CPU second and peak MiB of each variant, and pursuit's ratios."""
    seconds = json.loads(in_process("timed", json.dumps(case)))
    cells = []
    for variant in VARIANTS:
        if variant not in seconds:
            cells.append("–")
            continue
        peak = float(in_process("peak", json.dumps(case), variant))
        cells.append(f"{1 / seconds[variant]:.3g} ({peak:,.0f})")
    ratios = [f"{seconds[v] / seconds['pursuit']:.3g}" if {v, "pursuit"} <= set(seconds) else "–" for v in VARIANTS[:2]]
    return f"| {case.shape}, {case.subset} | {case.n_features:,} | {case.rank} | {' | '.join([*cells, *ratios])} |"


def main() -> None:
    """Harvest one batch a shape, then print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--shape", nargs="+", default=list(D_MODEL), choices=list(D_MODEL))
    parser.add_argument("--subset", nargs="+", default=list(NEO), choices=list(NEO))
    parser.add_argument("--features", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--rank", nargs="+", type=int, default=[1, 4, 25])
    options = parser.parse_args()
    print("| shape, subset | features | rank | direct | ordered | top_k | pursuit | SAE | pursuit / direct | / ordered |")
    print("|" + "---|" * 10, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for shape in options.shape:
            if shape == "stories260K" and options.folder is None:
                continue
            in_process("harvest", shape, options.folder or Path(), folder)
            for subset in options.subset:
                for n_features in options.features:
                    for rank in options.rank:
                        file = str(Path(folder) / f"{shape}-{subset}.pt")
                        print(row(Case(file, shape, subset, n_features, rank)), flush=True)


def worker(what: str, *arguments: str) -> None:
    """What a process of its own does."""
    torch.set_num_threads(1)
    if what == "harvest":
        harvest(*arguments)
    elif what == "timed":
        print(json.dumps(timed(Case(*json.loads(arguments[0])))))
    else:
        print(peak_mib(Case(*json.loads(arguments[0])), arguments[1]))


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in ("harvest", "timed", "peak"):
        worker(*sys.argv[1:])
    else:
        main()
