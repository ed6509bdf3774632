"""She or he: features of pairs of prompts, with and without a background, and what steps along them do to other text.

    python -m benchmarks.contrast FOLDER [--quick] [--params NAME]

FOLDER holds `load_stories.py` with `load_hooked()` and `load_tokens()`, the model and its texts. Features are fitted to 64
pairs of prompts with sixteen names; steps are tried on pairs with eight names that the fit has not seen, and on stories that
the background does not hold. For each feature a step is looked for, in either direction, that moves the answers by 0.05 nats
of KL on average; the table says how far the same step moves the stories, as a share of that.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import param_features as pf
from benchmarks.stories import stories_in

CASES = ("blocks.2.attn.W_V", "blocks.3.mlp.W_out")
WEIGHTS = (None, 3.0, 10.0)
GIRLS = ("Lily", "Sue", "Sara", "Mia", "Lucy", "Mary", "Anna", "Amy")
BOYS = ("Tom", "Ben", "Tim", "Jack", "Bob", "Max", "Sam", "John")
NEW_GIRLS, NEW_BOYS = ("Jane", "Emma", "Zoe", "Jill"), ("Leo", "Fred", "Joe", "Bill")
TEMPLATES = (
    "Once upon a time, there was a {child} named {name}. {name} was happy because",
    "One day, a {child} named {name} went to the park. {name} was sad because",
    "{name} was a little {child}. {name} liked to play. Every day,",
    "There was a {child} named {name}. {name} had a red ball. One day,",
)
KL = 0.05


def main() -> None:
    """Run the cases and print each one's table as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="two weights, 300 steps, 1,000 samples of the background")
    parser.add_argument("--params", help="this parameter alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stories = stories_in(options.folder)
    model, tokens = stories.load_hooked(), stories.load_tokens()
    weights = WEIGHTS[::2] if options.quick else WEIGHTS
    settings: dict[str, Any] = {"steps": 300} if options.quick else {}
    for params in [options.params] if options.params else CASES:
        for weight in weights:
            data = (
                None
                if weight is None
                else pf.Background(tokens[:1500], weight=weight, n_samples=1000 if options.quick else None)
            )
            n_features = 4 if weight is None else 8
            features = pf.decompose(
                model,
                params,
                reference=pairs(GIRLS, BOYS),
                background=data,
                n_features=n_features,
                progress=False,
                **settings,
            )
            print(f"weight {weight}: {features}\n{table(features, tokens[-64:])}\n", flush=True)


def pairs(girls: Sequence[str], boys: Sequence[str]) -> list[tuple[str, str]]:
    """Each template with a girl and a boy, both ways round."""
    prompt_pairs = []
    for template in TEMPLATES:
        for girl, boy in zip(girls, boys, strict=True):
            prompts = template.format(child="girl", name=girl), template.format(child="boy", name=boy)
            prompt_pairs += [prompts, prompts[::-1]]
    return prompt_pairs


def table(features: pf.ParamFeatures, stories: Tensor) -> str:
    """One line a feature of the target: its activations at new names, and what a step does there and on the stories."""
    prompts = [clean for clean, _ in pairs(NEW_GIRLS, NEW_BOYS)]
    acts = torch.stack([features.activations([prompt])[0, -1] for prompt in prompts])
    is_girl = torch.arange(len(prompts)) % 2 == 0  # pairs go both ways round in turn
    lines = ["feature   activation she     he   stories/answers   logits moved most"]
    for feature in range(features.config.get("background", {}).get("n_target", features.n_features)):
        she, he = acts[is_girl, feature].mean(), acts[~is_girl, feature].mean()
        ratio = sum(_ratio(features, feature, sign, prompts, stories) for sign in (1, -1)) / 2
        logits = features.top_logits(feature, 3)
        moved = f"up {' '.join(token for token, _ in logits.up)}, down {' '.join(token for token, _ in logits.down)}"
        lines.append(f"{feature:7d}   {she:14.3f} {he:6.3f}   {ratio:15.3f}   {moved}")
    return "\n".join(lines)


def _ratio(features: pf.ParamFeatures, feature: int, sign: int, prompts: list[str], stories: Tensor) -> float:
    """KL of the stories, mean over all positions, where that of the answers is `KL`; the step is found by bisection."""
    low, high = 1e-3, 100.0
    for _ in range(16):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if _answers_kl(features, feature, sign * middle, prompts) < KL else (low, middle)
    engine = features.bound_engine("contrast")
    model = engine.adapter.model
    with torch.no_grad():
        before = model(stories)
        with engine.subset.edited(_step(features, feature, sign * low)):
            after = model(stories)
    return float(_kl(before, after).mean()) / KL


def _answers_kl(features: pf.ParamFeatures, feature: int, size: float, prompts: list[str]) -> float:
    engine = features.bound_engine("contrast")
    adapter = engine.adapter
    ids = [torch.tensor([adapter.to_ids(prompt)]) for prompt in prompts]
    with torch.no_grad():
        before = [adapter.model(row)[:, -1] for row in ids]
        with engine.subset.edited(_step(features, feature, size)):
            divergences = [float(_kl(old, adapter.model(row)[:, -1])) for row, old in zip(ids, before, strict=True)]
    return sum(divergences) / len(divergences)


def _step(features: pf.ParamFeatures, feature: int, size: float) -> dict[str, Tensor]:
    return {name: size * direction for name, direction in features.direction(feature).items()}


def _kl(before: Tensor, after: Tensor) -> Tensor:
    before, after = before.log_softmax(-1), after.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1)


if __name__ == "__main__":
    main()
