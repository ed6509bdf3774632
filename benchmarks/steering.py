"""Steps along single features: on toys, whether the right output moves; on the real model, a token's probability; the audit.

python -m benchmarks.steering FOLDER [OUT], with the folder that holds load_stories.py; prints docs/how-to/steer.md's tables
and writes its plots to OUT (runs/steering). Half an hour on one core, most of it two refits for the audit.
"""

import sys
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import param_features as pf
from benchmarks import toys
from benchmarks.stories import fit_stories
from param_features.fit.formats import LowRank
from param_features.intervene import deltas_of, weight_norm
from param_features.measure import match_directions
from param_features.measure.controls import random_like
from param_features.measure.effects import read_effects
from param_features.problem import ModelInputs

STEPS = (-0.1, -0.03, -0.01, 0.01, 0.03, 0.1)


def own_shares(toy, features, directions: LowRank, pairs: list[list[int]], ways: Tensor) -> tuple[float, float]:
    """Of all the change on single-feature inputs: the share along the feature's own output, and that on its own input."""
    engine, units = features.engine, torch.eye(toy.n_features)
    outputs, inputs = [], []
    for truth, feature in pairs:
        for sign in (1, -1):
            delta = {feature: sign * 0.1 * weight_norm(engine.subset)}
            change = deltas_of(directions, delta, engine.subset)
            moved = read_effects(engine, ModelInputs((units,), {}), [change], lambda before, after: after - before)[0]
            total, way = moved.norm(dim=1).sum(), ways[truth] / ways[truth].norm()
            outputs.append(float((moved @ way).abs().sum() / total))
            inputs.append(float(moved[truth].norm() / total))
    return sum(outputs) / len(outputs), sum(inputs) / len(inputs)


def both_toys(n_seeds: int, out: Path) -> None:
    """A table of both toys, and a plot of each."""
    for name, build in (("TMS 5-2", pf.toys.superposition), ("TMCS 10-5-10", toys.linear_map)):
        rows: dict[str, list[tuple[float, float]]] = {"features": [], "planted": [], "random": []}
        for seed in range(n_seeds):
            toy = build(seed=seed)
            features = toy.decompose()
            n, generator = toy.n_features, torch.Generator().manual_seed(seed)
            ways = toy.A.T if isinstance(toy, toys.LinearMapToy) else torch.eye(n)
            pairs = match_directions(toy.truth, features.v_out, generator).pairs.tolist()
            own = [[i, i] for i in range(n)]
            rows["features"].append(own_shares(toy, features, features.v_out, pairs, ways))
            rows["planted"].append(own_shares(toy, features, toy.truth, own, ways))
            rows["random"].append(own_shares(toy, features, random_like(toy.truth, generator), own, ways))
            if seed == n_seeds - 1:
                place, feature = pairs[0]
                figure = pf.plot.steering(features, feature, inputs=torch.eye(n)[[place]])
                pf.plot.save(figure, out / f"{name.split()[0].lower()}.png")
        for who, found in rows.items():
            cells = [f"{median(each):.3f}, {min(each):.3f}" for each in zip(*found, strict=True)]
            print(f"| {name} | {who} | {' | '.join(cells)} |")


def places_of(acts: Tensor, feature: int) -> Tensor:
    """The samples with the feature's 20 largest activations of the commoner sign, by number."""
    values = acts[..., feature].flatten()
    best = values.abs().topk(40).indices
    sign = values[best].sign().sum().sign()
    return best[values[best] * sign > 0][:20]


def token_row(features, feature: int, stories: Tensor, acts: Tensor, random: Tensor) -> str:
    """Probability of the token that the model predicts, on the feature's top contexts and on random ones, as δ grows."""
    norm, top = weight_norm(features.engine.subset), places_of(acts, feature)
    changes = [deltas_of(features.v_out, {feature: step * norm}, features.engine.subset) for step in (0.0, *STEPS)]

    def read(before: Tensor, after: Tensor) -> Tensor:
        return after.softmax(-1).gather(1, before.argmax(1, keepdim=True))[:, 0]

    found = read_effects(features.engine, ModelInputs((stories,), {}), changes, read)
    cells = [f"{float(each[top].mean()):.3f} / {float(each[random].mean()):.3f}" for each in found]
    return f"| {feature} | {acts[..., feature].flatten()[top].mean():+.1f} | {' | '.join(cells)} |"


def real(folder: Path, out: Path) -> None:
    """Fit, step, audit, and write the report."""
    features, train, held_out = fit_stories(folder)
    print(features)
    random = torch.randperm(60 * held_out.shape[1], generator=torch.Generator().manual_seed(1))[:200]
    densest = features.densities(held_out).argsort(descending=True)
    print(f"| feature | activation | before | {' | '.join(f'{step:+g} ‖W‖' for step in STEPS)} |")
    acts = features.activations(held_out[:60])
    for feature in densest[[0, 10, 30, 50, 70]].tolist():
        print(token_row(features, feature, held_out[:60], acts, random))
    best = features.top_examples(int(densest[10]), 20, tokens=held_out)
    prompts = [held_out[[example.row], : example.position + 1] for example in best if example.position > 8]
    shortest = min(prompt.shape[1] for prompt in prompts)
    figure = pf.plot.steering(features, int(densest[10]), torch.cat([prompt[:, -shortest:] for prompt in prompts]))
    pf.plot.save(figure, out / "real.png")
    audit = features.audit(held_out, refit=train)
    print(audit)
    print(features.report(out / "real.html", tokens=held_out, audit=audit))


if __name__ == "__main__":
    folder, *rest = map(Path, sys.argv[1:])
    out = rest[0] if rest else Path("runs/steering")
    out.mkdir(parents=True, exist_ok=True)
    both_toys(10, out)
    real(folder, out)
