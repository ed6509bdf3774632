"""When induction heads form in the induction toy: by attention, by loss, and by parameter features; which features appear.

    python -m benchmarks.induction_training [--seeds 3] [--every 20] [--quick] [--plot FILE]

For every seed the toy is trained once (its checkpoints are kept on disk) and measured at each checkpoint on rows that no fit
sees. A curve's step is where ruptures puts one break under the l2 cost: the two means that leave the least squared residual.
Beside it, where the curve is first beyond half of its way. Then the features of the trained toy whose selectivity rises most
across the step of prefix matching. About 3 CPU minutes for each seed on one thread.
"""

import argparse
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import ruptures
import torch
from torch import Tensor

import param_features as pf
from benchmarks import toys
from benchmarks.toys.induction import Rows, draw_rows
from param_features.development.checkpoints import lent
from param_features.development.patterns import attention_patterns
from param_features.fit import activations
from param_features.gradients import collect_references
from param_features.measure.ranking import auroc
from param_features.params import adapter_for
from param_features.plots.figures import COLOURS
from param_features.problem import ModelInputs
from param_features.toys.cache import Weights

START = 48
N_ROWS, N_FOLLOWED, AROUND, N_LISTED = 512, 256, 2, 5
QUICK = {"steps": 200, "n_samples": 3000}
ATTENTION = "prefix matching, best head"
RESTING = "attention of the final best head to the row's first token, where nothing repeats"
SCORE = "in-context score"
SCORE_OF_REPEATS = "in-context score, rows that end in a repetition"
LOSS = "loss where letters repeat"
AMONG = "the same, among the row's letters"
LETTERS = "probability of the row's letters there"
MIRRORED = "loss where letters are mirrored"
FOLLOWED = "final features, followed back: area under ROC"
FITTED = "features fitted there: area under ROC"
RANDOM = "random directions there: area under ROC"
SELECTIVITY = "final features, followed back: selectivity"
IMPACT = "final features, followed back: mean impact"
PATH = "path of token losses: first component"
CURVES = (
    ATTENTION,
    RESTING,
    SCORE,
    SCORE_OF_REPEATS,
    LOSS,
    AMONG,
    LETTERS,
    MIRRORED,
    FOLLOWED,
    FITTED,
    RANDOM,
    SELECTIVITY,
    IMPACT,
    PATH,
)


def main() -> None:
    """Measure every seed, print its curves, the table of steps and the features that appear."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="without the fits at each checkpoint")
    parser.add_argument("--plot", type=Path, help="where to write a picture of the curves of the first seed")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for seed in range(asked.seeds):
        start = time.process_time()
        steps, curves, listed = of_seed(seed, asked.every, asked.quick)
        found.append({name: (one_break(steps, curve), halfway(steps, curve)) for name, curve in curves.items()})
        print(f"\nseed {seed}, {time.process_time() - start:.0f} CPU s\n{listed}", flush=True)
        show_curves(steps, curves)
        if asked.plot and seed == 0:
            pf.plot.save(drawn(steps, curves), asked.plot)
    print("\n| step of the break (and halfway) | " + " | ".join(f"seed {seed}" for seed in range(asked.seeds)) + " |")
    print("|---" * (asked.seeds + 1) + "|")
    for name in found[0]:
        print(f"| {name} | " + " | ".join(f"{of[name][0]} ({of[name][1]})" for of in found) + " |")


def of_seed(seed: int, every: int, is_quick: bool) -> tuple[list[int], dict[str, list[float]], str]:
    """Steps, every curve, and the features that appear."""
    toy, checkpoints = toys.induction(seed=seed), toys.induction_checkpoints(seed=seed, every=every)
    rows = draw_rows(N_ROWS, torch.Generator().manual_seed(seed + 77))
    model, curves = deepcopy(toy.model), {name: [] for name in CURVES}
    head = int(pf.development.prefix_matching(model, rows.tokens).scores[1].argmax())
    features = toy.decompose(seed=seed)
    areas, selectivity, impact = followed(features, checkpoints, rows)
    for weights in checkpoints.values():
        model.load_state_dict(weights, strict=False)
        by_losses(curves, model, rows)
        curves[RESTING].append(resting(model, rows, head))
        if not is_quick:
            there = replace(toy, model=model)
            scores = there.score(there.decompose(seed=seed, **QUICK))
            curves[FITTED].append(scores.auroc["repeated"])
            curves[RANDOM].append(scores.controls["random"]["repeated"])
    curves[FOLLOWED] = areas
    curves[SELECTIVITY], curves[IMPACT] = selectivity.mean(1).tolist(), impact.mean(1).tolist()
    trajectory = pf.development.loss_trajectory(model, checkpoints, rows.tokens[:128])
    curves[PATH] = trajectory.components[:, 0].tolist()
    steps, curves = list(checkpoints), {name: values for name, values in curves.items() if values}
    return steps, curves, appearing(features, steps, selectivity, steps.index(one_break(steps, curves[ATTENTION])))


def by_losses(curves: dict[str, list[float]], model: torch.nn.Module, rows: Rows) -> None:
    """Add what attention and losses say at one checkpoint."""
    losses, ends_so = pf.development.token_losses(model, rows.tokens), rows.repeated[:, -2]
    curves[ATTENTION].append(float(pf.development.prefix_matching(model, rows.tokens).scores.max()))
    curves[SCORE].append(pf.development.in_context_score(model, rows.tokens))
    curves[SCORE_OF_REPEATS].append(pf.development.in_context_score(model, rows.tokens[ends_so]))
    curves[LOSS].append(float(losses[rows.repeated[:, :-1]].mean()))
    letters = of_the_rows_letters(model, rows.tokens)[rows.repeated[:, :-1]]
    curves[AMONG].append(float((losses[rows.repeated[:, :-1]] + letters).mean()))
    curves[LETTERS].append(float(letters.exp().mean()))
    curves[MIRRORED].append(float(losses[rows.mirrored[:, :-1]].mean()))


def resting(model: torch.nn.Module, rows: Rows, head: int) -> float:
    """Mean attention of a head of the second layer to position 0, from tokens that neither repeat nor mirror."""
    pattern = attention_patterns(adapter_for(model), ModelInputs((rows.tokens,), {}))["blocks.1.attn"][:, head, :, 0]
    return float(pattern[~rows.known & ~rows.last & (rows.tokens != START)].mean())


@torch.no_grad()
def of_the_rows_letters(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """Log-probability [row, pos] that the next token is one of those seen in the row: which needs no induction."""
    is_seen = torch.nn.functional.one_hot(tokens, START + 1).cumsum(1)[:, :-1] > 0
    return model(tokens)[:, :-1].log_softmax(-1).where(is_seen, -torch.inf).logsumexp(-1)


def followed(features: pf.ParamFeatures, checkpoints: dict[int, Weights], rows: Rows) -> tuple[list[float], Tensor, Tensor]:
    """Fixed features at each checkpoint, read against its own outputs.

    Returns:
        Area under ROC of |activation| for `repeated`, of the feature that is best on one half of the rows, on the other;
        selectivity [checkpoint feature], mean |activation| where letters repeat over that elsewhere; mean |activation|.
    """
    engine, inputs = features.bound_engine("followed"), ModelInputs((rows.tokens[:N_FOLLOWED],), {})
    at = rows.repeated[:N_FOLLOWED]
    counted = (~rows.last & (rows.tokens != START))[:N_FOLLOWED]
    areas, selectivity, impact = [], [], []
    with lent(engine.adapter) as load:
        for step, weights in checkpoints.items():
            load(weights, step)
            generator = torch.Generator().manual_seed(0)
            call = (engine, features.divergence, inputs, features.reference, len(features.references), generator)
            question = replace(features.question, references=collect_references(*call))
            acts = activations(engine, features.v_in, question, inputs).abs()
            areas.append(told(acts, at, counted))
            selectivity.append(acts[at].mean(0) / acts[counted & ~at].mean(0))
            impact.append(acts[counted].mean(0))
    return areas, torch.stack(selectivity), torch.stack(impact)


def told(acts: Tensor, at: Tensor, counted: Tensor) -> float:
    """As the toy's own score chooses and measures."""
    halves = (slice(len(acts) // 2), slice(len(acts) // 2, None))
    choose, measure = (auroc(acts[half][counted[half]], at[half][counted[half]].unsqueeze(1))[0] for half in halves)
    return float(measure[int(choose.nan_to_num(0.5).argmax())])


def appearing(features: pf.ParamFeatures, steps: list[int], selectivity: Tensor, place: int) -> str:
    """The features whose selectivity rises most across the change, and where they act most in the trained toy."""
    before, after = max(place - 1 - AROUND, 0), min(place + AROUND, len(steps) - 1)
    logs = selectivity.log()
    rise = logs[after] - logs[before]
    lines = [
        f"Features that appear: selectivity from step {steps[before]} to {steps[after]}, and at the end; all {len(rise)} "
        f"features on average {selectivity[before].mean():.2f} → {selectivity[after].mean():.2f}"
    ]
    for feature in rise.argsort(descending=True)[:N_LISTED].tolist():
        numbers = " → ".join(f"{selectivity[row, feature]:.2f}" for row in (before, after, -1))
        lines += [f"  feature {feature}: {numbers}", *map(spelled, features.top_examples(feature, 3))]
    return "\n".join(lines)


def spelled(example: Any) -> str:
    """A row in letters, the one where the feature acts in brackets."""
    letters = [letter(int(token)) for token in example.tokens]
    letters[example.position] = f"[{letters[example.position]}]"
    return f"    {example.activation:+8.1f}  {''.join(letters)}"


def letter(token: int) -> str:
    """Small letters, capitals, and a caret at the start of a row."""
    return "^" if token == START else chr(ord("a") + token) if token < START // 2 else chr(ord("A") + token - START // 2)


def one_break(steps: Sequence[int], curve: Sequence[float]) -> int:
    """The first step of the second of two phases."""
    values = torch.tensor(curve, dtype=torch.float64)
    return steps[ruptures.Dynp(model="l2", min_size=1, jump=1).fit(values.numpy()).predict(n_bkps=1)[0]]


def halfway(steps: Sequence[int], curve: Sequence[float]) -> int:
    """The first step at which the curve has gone half of the way from its first to its last value."""
    values = torch.tensor(curve, dtype=torch.float64)
    return steps[int((((values - values[0]) / (values[-1] - values[0])) >= 0.5).double().argmax())]


def show_curves(steps: list[int], curves: dict[str, list[float]]) -> None:
    """A line for every curve, every second checkpoint."""
    print("steps " + " ".join(map(str, steps[::2])))
    for name, values in curves.items():
        print(f"{name}: " + " ".join(f"{value:.2f}" for value in values[::2]))


def drawn(steps: list[int], curves: dict[str, list[float]]):
    """Curves from 0, their lowest, to 1, their highest value, with their breaks dotted."""
    import plotly.graph_objects as go

    figure = go.Figure()
    chosen = [name for name in (ATTENTION, SCORE_OF_REPEATS, FOLLOWED, FITTED, SELECTIVITY) if name in curves]
    for name, colour in zip(chosen, COLOURS, strict=False):
        values = torch.tensor(curves[name])
        scaled = (values - values.min()) / (values.max() - values.min())
        figure.add_trace(go.Scatter(x=steps, y=scaled, name=name, line={"color": colour}))
        figure.add_vline(one_break(steps, curves[name]), line={"color": colour, "dash": "dot", "width": 1})
    return figure.update_layout(template="plotly_white", width=900, height=480, xaxis_title="training step")


if __name__ == "__main__":
    main()
