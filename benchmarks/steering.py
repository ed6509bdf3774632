"""Steps along single features: on toys, whether the right output moves; on the real model, a token's probability; the audit.

python benchmarks/steering.py FOLDER [OUT], with the folder that holds load_stories.py; prints docs/interventions.md's tables
and writes its plots to OUT (runs/steering). Half an hour on one core, most of it two refits for the audit.
"""

import sys
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import param_features as pf
from param_features.audit.subject import drawn
from param_features.directions import LowRank
from param_features.inputs import ModelInputs
from param_features.intervene import deltas_of, weight_norm
from param_features.measure import match_directions
from param_features.measure.effects import read_effects

N_HELD_OUT, STEPS = 200, (-0.1, -0.03, -0.01, 0.01, 0.03, 0.1)


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


def toys(n_seeds: int, out: Path) -> None:
    """A table of both toys, and a plot of each."""
    for name, build in (("TMS 5-2", pf.toys.superposition), ("TMCS 10-5-10", pf.toys.linear_map)):
        rows: dict[str, list[tuple[float, float]]] = {"features": [], "planted": [], "random": []}
        for seed in range(n_seeds):
            toy = build(seed=seed)
            features = toy.decompose()
            n, generator = toy.n_features, torch.Generator().manual_seed(seed)
            ways = toy.A.T if hasattr(toy, "A") else torch.eye(n)
            pairs = match_directions(toy.truth, features.v_out, generator).pairs.tolist()
            own = [[i, i] for i in range(n)]
            rows["features"].append(own_shares(toy, features, features.v_out, pairs, ways))
            rows["planted"].append(own_shares(toy, features, toy.truth, own, ways))
            rows["random"].append(own_shares(toy, features, drawn(features.engine, n, 1, generator), own, ways))
        for who, found in rows.items():
            cells = [f"{median(each):.3f}, {min(each):.3f}" for each in zip(*found, strict=True)]
            print(f"| {name} | {who} | {' | '.join(cells)} |")
        place, feature = pairs[0]
        figure = pf.plot.steering(features, feature, inputs=torch.eye(n)[[place]])
        pf.plot.save(figure, out / f"{name.split()[0].lower()}.png")


def places_of(acts: Tensor, feature: int) -> Tensor:
    """The samples with the feature's 20 largest activations of the commoner sign, by number."""
    values = acts[..., feature].flatten()
    best = values.abs().topk(40).indices
    sign = values[best].sign().sum().sign()
    return best[values[best] * sign > 0][:20]


def probabilities(features, feature: int, stories: Tensor, step: float) -> Tensor:
    """Of every token at every sample, after a step of a share of ‖W‖."""
    delta = {feature: step * weight_norm(features.engine.subset)}
    change = deltas_of(features.v_out, delta, features.engine.subset)
    return read_effects(features.engine, ModelInputs((stories,), {}), [change], lambda _, after: after.softmax(-1))[0]


def token_row(features, feature: int, others: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], random: Tensor) -> str:
    """A token's probability on the feature's top contexts and on random ones, as δ grows.

    The token is the one whose probability a short step moves most on the top contexts of other stories. Stories come with
    their activations.
    """
    top = places_of(others[1], feature)
    low, high = (probabilities(features, feature, others[0], step)[top].mean(0) for step in (-0.01, 0.01))
    number, top = int((high - low).abs().argmax()), places_of(own[1], feature)
    found = [probabilities(features, feature, own[0], step)[:, number] for step in (0.0, *STEPS)]
    cells = [f"{float(each[top].mean()):.3f} / {float(each[random].mean()):.3f}" for each in found]
    return f"| {feature} | {features.engine.adapter.to_strings([number])[0]!r} | {' | '.join(cells)} |"


def real(folder: Path, out: Path) -> None:
    """Fit, step, audit, and write the report."""
    sys.path.insert(0, str(folder))
    import load_stories

    model, tokens = load_stories.load_hooked(), load_stories.load_tokens()
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))
    train, held_out = tokens[order[:-N_HELD_OUT]], tokens[order[-N_HELD_OUT:]]
    call = {"n_features": 100, "l0": 5, "n_samples": 16000, "steps": 300, "seed": 0, "progress": False}
    features = pf.decompose(model, "blocks.2.attn.W_K", train, **call)
    print(features)
    random = torch.randperm(60 * held_out.shape[1], generator=torch.Generator().manual_seed(1))[:200]
    densest = features.densities(held_out).argsort(descending=True)
    print(f"| feature | token | before | {' | '.join(f'{step:+g} ‖W‖' for step in STEPS)} |")
    others, own = ((rows, features.activations(rows)) for rows in (train[:60], held_out[:60]))
    for feature in densest[[0, 10, 30, 50, 70]].tolist():
        print(token_row(features, feature, others, own, random))
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
    toys(10, out)
    real(folder, out)
