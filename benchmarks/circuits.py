"""Circuits: planted ones found, the induction circuit of a toy, two behaviours of a real model, and what effects cost.

    python -m benchmarks.circuits relay [--seeds 10]
    python -m benchmarks.circuits saturated
    python -m benchmarks.circuits induction [--seeds 3]
    python -m benchmarks.circuits real FOLDER [--fits FOLDER] [--sae FOLDER] [--out FOLDER]
    python -m benchmarks.circuits cost FOLDER [--fits FOLDER]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`, the model and its texts. Fits are kept under --fits
and taken from there when they are found. One thread.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

import param_features as pf
from benchmarks import toys
from benchmarks.stories import stories_in
from benchmarks.toys.induction import draw_rows
from param_features.circuits.ablation import Ablation, ablating
from param_features.circuits.effects import attribution, read_subject

BLOCKS, KINDS = (1, 2, 3), ("attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
HOOK = "blocks.2.hook_resid_post"
GIRLS = ("Lily", "Sue", "Sara", "Mia", "Lucy", "Mary", "Anna", "Amy")
BOYS = ("Tom", "Ben", "Tim", "Jack", "Bob", "Max", "Sam", "John")
NAMED = (
    "Once upon a time, there was a {child} named {name}. {name} was happy because",
    "One day, a {child} named {name} went to the park. {name} was sad because",
)
BEFORE = (
    "",
    "The end. ",
    "They lived happily. ",
    "Good night. ",
    "He was happy. ",
    "She was very sad. ",
    "Mom smiled. ",
    "Yes. ",
)
LETTERS, N_EACH = 24, 40


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["relay", "saturated", "induction", "real", "cost"])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--fits", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--sae", type=Path, help="an SAE of blocks.2.hook_resid_post; trained where it is left out")
    parser.add_argument("--out", type=Path, default=Path("runs/circuits"))
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "relay":
        relay(asked.seeds)
    elif asked.what == "saturated":
        saturated()
    elif asked.what == "induction":
        induction(asked.seeds)
    elif asked.what == "real":
        real(asked)
    else:
        cost(asked)


def relay(n_seeds: int) -> None:
    """The planted two-layer toy: precision and recall of nodes and edges, over jobs and seeds."""
    found: dict[str, list[list[float]]] = {}
    wanted = ("node_precision", "node_recall", "edge_precision", "edge_recall")
    for seed in range(n_seeds):
        toy = toys.relay(seed=seed)
        features = toy.decompose_layers(seed=seed)
        for job in range(toy.n_jobs):
            prompts, metric = toy.prompts(job), toy.metric(job)
            size = float(metric(toy.model(prompts)).detach().mean())
            ways: dict[str, dict[str, Any]] = {"grown": {"n_nodes": len(toy.truth(job)[0])}} | {
                f"5 %, {method}": {"threshold": 0.05 * size, "method": method}
                for method in ("attribution", "integrated", "exact")
            }
            for way, sizes in ways.items():
                circuit = pf.circuit(
                    features,
                    inputs=prompts,
                    metric=metric,
                    ablation="zero",
                    n_random=0,
                    n_examples=0,
                    edge_threshold=0.02,
                    **sizes,
                )
                numbers = toy.score_circuit(circuit, features=features, job=job).numbers
                found.setdefault(way, []).append(
                    [numbers[name] for name in wanted] + [numbers[f"{name}_random"] for name in wanted[::2]]
                )
    print(
        f"{n_seeds} seeds, 5 jobs: means; in how many all four are 0.9 or more; random circuits' precision of nodes, edges"
    )
    for way, rows in found.items():
        table = torch.tensor(rows)
        means = " ".join(f"{name} {value:.3f}" for name, value in zip(wanted, table.mean(0).tolist(), strict=False))
        good = int((table[:, :4] >= 0.9).all(1).sum())
        print(
            f"{way:18} {means}  {good} of {len(table)}  random {table[:, 4].mean():.3f} {table[:, 5].mean():.3f}", flush=True
        )


def saturated() -> None:
    """Where the gradient says nothing: attribution, integrated gradients and the exact effect of four features."""
    toy = toys.saturated()
    features, inputs = toy.planted_features(), toy.inputs[:64]
    exact = pf.circuits.indirect_effects(features, inputs=inputs, metric=toy.metric(), ablation="zero", method="exact").mean[
        :4
    ]
    for method in ("attribution", "integrated"):
        call = {"ablation": "zero", "method": method, "n_steps": 50}
        found = pf.circuits.indirect_effects(features, inputs=inputs, metric=toy.metric(), **call).mean[:4]
        agreement = float(torch.corrcoef(torch.stack([found, exact]))[0, 1])
        print(f"{method:12} {[round(value, 4) for value in found.tolist()]}  correlation with exact {agreement:.3f}")
    print(f"{'exact':12} {[round(value, 4) for value in exact.tolist()]}")


def induction(n_seeds: int) -> None:
    """The induction toy: for every letter that repeats, a circuit of a tenth of 160 features of both layers."""
    names = [f"blocks.{layer}.attn.{name}" for layer, name in ((0, "W_V"), (0, "W_O"), (1, "W_Q"), (1, "W_K"))]
    shown = ("faithfulness", "completeness", "faithfulness_random", "faithfulness_matched", "faithfulness_directions")
    shown += ("gap", "gap_random")
    for seed in range(n_seeds):
        toy = toys.induction(seed=seed)
        call = {"n_features": 40, "l0": 5, "steps": 500, "n_samples": 9600, "seed": seed, "progress": False}
        fit = pf.FitSettings(batch_size=256)
        sets = [pf.decompose(toy.model, name, toy.inputs, fit=fit, **call) for name in names]
        rows, unseen, layers = [], [], []
        for letter in range(LETTERS):
            (prompts, metric), (others, other_metric) = (_letter(letter, half) for half in (0, 1))
            circuit = pf.circuit(sets, prompts, metric, n_nodes=16, background=toy.inputs[:64], seed=seed)
            rows.append([circuit.scores[name] for name in shown])
            layers.append({node.group for node in circuit.nodes if node.kind == "parameter"})
            unseen.append(_faithfulness(circuit, sets, others, other_metric, toy.inputs[:64]))
        table = torch.tensor(rows)
        both = sum(any("blocks.0" in g for g in one) and any("blocks.1" in g for g in one) for one in layers)
        print(f"seed {seed}: {LETTERS} letters, median and worst; features of both layers in {both}")
        for place, name in enumerate(shown):
            column = table[:, place]
            worst = (
                column.max()
                if name.startswith("comp") or name.endswith(("random", "matched", "directions"))
                else column.min()
            )
            print(f"  {name:22} {column.median():.3f}  {worst:.3f}")
        values = torch.tensor(unseen)
        print(
            f"  {'on unseen rows':22} {values.median():.3f}  {values.min():.3f}   at least 0.8: {int((values >= 0.8).sum())}"
        )
        print(f"  letters at 0.8 or more: {int((table[:, 0] >= 0.8).sum())}", flush=True)


def _letter(letter: int, half: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows in which a letter repeats, and the log-probability of what follows it there; two halves of different rows."""
    rows = draw_rows(8000, torch.Generator().manual_seed(5))
    where = (rows.tokens == letter) & rows.repeated
    chosen = where.any(1).nonzero().flatten()[half * N_EACH : (half + 1) * N_EACH]
    tokens, position = rows.tokens[chosen], where[chosen].double().argmax(1)
    number = torch.arange(len(chosen))
    answer = tokens[number, position + 1]

    def repeated_letter(output: Tensor) -> Tensor:
        return output[number, position].log_softmax(-1).gather(1, answer.unsqueeze(1))[:, 0]

    return tokens, repeated_letter


def _faithfulness(circuit: pf.circuits.Circuit, sets: Any, prompts: Tensor, metric: Any, background: Tensor) -> float:
    """The circuit's faithfulness on other prompts."""
    subject = ablating(read_subject(sets, prompts, None, metric, None), Ablation("mean", background))
    chosen = {node.name for node in circuit.nodes}
    kept = torch.tensor([name in chosen for name in subject.names])
    own, empty = (subject.values(subject.amounts_keeping(nodes)).mean() for nodes in (kept, subject.is_error))
    return float((own - empty) / (subject.values().mean() - empty))


def real(asked: argparse.Namespace) -> None:
    """Two behaviours of the real model, each a circuit of parameter features; then one with an SAE's features too."""
    model, tokens = _loaded(asked.folder)
    sets = _fits(model, tokens, asked.fits)
    sae = asked.sae or pf.sae.train_sae(model, HOOK, tokens[:1200], n_features=512, l0=5, seed=0, progress=False)
    people = [(template, child, name) for template in NAMED for child, names in _PEOPLE for name in names]
    named = [template.format(child=child, name=name) for template, child, name in people]
    right = [" she" if child == "girl" else " he" for _, child, _ in people]
    wrong = [" he" if child == "girl" else " she" for _, child, _ in people]
    cases = {
        "he or she": (named, pf.circuits.LogitDifference(right, wrong)),
        "once upon a time": ([f"{before}Once upon a" for before in BEFORE], pf.circuits.LogProbability(" time")),
    }
    asked.out.mkdir(parents=True, exist_ok=True)
    for case, (prompts, metric) in cases.items():
        for kind, saes in {"parameters": None, "with an SAE": {HOOK: sae}}.items():
            for n_nodes in (30, 150):
                start = time.process_time()
                circuit = pf.circuit(sets, prompts, metric, n_nodes=n_nodes, saes=saes, background=tokens[-64:])
                print(f"\n{case}, {kind}, {time.process_time() - start:.0f} CPU s\n{circuit}", flush=True)
                name = f"{case} {kind} {n_nodes}".replace(" ", "_")
                circuit.save(asked.out / f"{name}.json")
                if n_nodes == 30:
                    pf.plot.save(pf.plot.circuit(circuit), asked.out / f"{name}.png")
                    of_block = [node.name for node in circuit.nodes if node.kind == "parameter"]
                    print(circuit.shift(of_block, others=tokens[-128:-64]), flush=True)


def cost(asked: argparse.Namespace) -> None:
    """Effects of 100 features on 64 prompts, in ordinary forward and backward passes of the same batch."""
    model, tokens = _loaded(asked.folder)
    features = _fits(model, tokens, asked.fits, names=("blocks.2.attn.W_K",))[0]
    prompts = tokens[-64:]
    weights = list(model.parameters())

    def ordinary() -> None:
        logs = model(prompts)[:, :-1].log_softmax(-1).gather(-1, prompts[:, 1:, None])
        torch.autograd.grad(logs.mean(), weights, allow_unused=True)

    for ablation in ("zero", "mean", "resample"):
        times: dict[str, list[float]] = {"pass": [], "effects": [], "baseline": []}
        bare = read_subject(features, prompts, None, "loss", None)
        for _ in range(9):
            times["pass"].append(_seconds(ordinary))
            start = time.process_time()
            subject = ablating(bare, Ablation(ablation))
            times["baseline"].append(time.process_time() - start)
            times["effects"].append(_seconds(lambda subject=subject: attribution(subject)))
        one = median(times["pass"])
        print(
            f"{ablation:9} all effects of {features.n_features} features on {len(prompts)} prompts: "
            f"{median(times['effects']) / one:.2f} forward and backward passes of {one:.3f} CPU s; "
            f"the baseline {median(times['baseline']) / one:.2f}",
            flush=True,
        )


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _fits(model: Any, tokens: Tensor, folder: Path, names: tuple[str, ...] | None = None) -> list[pf.ParamFeatures]:
    found = []
    for name in names or [f"blocks.{block}.{kind}" for block in BLOCKS for kind in KINDS]:
        path = folder / name
        if not path.is_dir():
            call = {"n_features": 100, "l0": 5, "steps": 500, "n_samples": 12000, "seed": 0, "progress": False}
            pf.decompose(model, name, tokens[:1200], **call).save_pretrained(path)
        found.append(pf.load(path, model=model))
    return found


def _loaded(folder: Path) -> tuple[Any, Tensor]:
    stories = stories_in(folder)
    return stories.load_hooked(), stories.load_tokens()


_PEOPLE = (("girl", GIRLS), ("boy", BOYS))


if __name__ == "__main__":
    main()
