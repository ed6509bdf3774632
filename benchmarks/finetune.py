"""A trained language model taught to prefer one name, by 10 coefficients, beside LoRA and random directions at equal gain.

    python -m benchmarks.finetune FOLDER [--seeds 3] [--params NAME] [--kl-weight 1]

FOLDER holds `load_stories.py` with `load_hf()` and `load_tokens()`, the model and its texts. For each seed, which draws the
fit's samples, the rows and the rivals anew: the loss, the name's probability on the templates learned and on others, before
and after, and the off-target divergence on stories at equal gain.
"""

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

import param_features as pf
from benchmarks.stories import stories_in

NAME = " Tim"
LEARNED = [
    start.format(kind)
    for start in ("Once upon a time, there was a little {} named", "One day, a {} named")
    for kind in ("girl", "bunny", "princess", "mouse", "cat", "bird", "fish", "duck")
]
OTHERS = [
    start.format(kind)
    for start in ("Once upon a time, there was a big {} named", "There was a happy {} named")
    for kind in ("dog", "fox", "bear", "frog", "queen", "horse", "mom", "cow")
]
N_FIT, N_OTHER, N_CTX = 2400, 80, 32


def main() -> None:
    """Print one block for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--params", default="model.layers.3.mlp.down_proj.weight", help="one of them, or a glob")
    parser.add_argument("--kl-weight", type=float, default=1.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    stories = stories_in(options.folder)
    model, tokenizer = stories.load_hf()
    tokens = stories.load_tokens()
    for seed in range(options.seeds):
        _run(model, tokenizer, tokens, options, seed)


def _run(model, tokenizer, tokens: torch.Tensor, options: argparse.Namespace, seed: int) -> None:
    """Fit, teach, compare."""
    features = pf.decompose(
        model,
        options.params,
        tokens[:N_FIT],
        reference="label",
        tokenizer=tokenizer,
        n_features=200,
        l0=5,
        n_samples=8000,
        steps=150,
        seed=seed,
        progress=False,
    )
    tuned = features.finetune(
        [(text, NAME) for text in LEARNED],
        10,
        steps=100,
        lr=0.05,
        kl_data=tokens[N_FIT : N_FIT + N_OTHER, :N_CTX],
        kl_weight=options.kl_weight,
        batch_size=16,
        seed=seed,
        progress=False,
    )
    print(f"seed {seed}: fit's error {features.metrics['reconstruction_error']:.3f}", tuned, sep="\n")
    for title, texts in (("learned", LEARNED), ("other", OTHERS)):
        before, after = (_probability(features, steps, texts) for steps in ({}, tuned.coefficients))
        print(f"P({NAME!r}) on {len(texts)} {title} templates: {before:.3f} before, {after:.3f} after")
    print(tuned.beside_lora(progress=False), end="\n\n", flush=True)


def _probability(features: pf.ParamFeatures, steps: Mapping[int, float], texts: list[str]) -> float:
    """The name's mean probability after each text, at W + Σ δ_k v_k."""
    engine = features.bound_engine("finetune")
    adapter, subset = engine.adapter, engine.subset
    deltas = {view.name: torch.zeros_like(view.tensor) for view in subset.views}
    for feature, step in steps.items():
        for name, direction in features.direction(feature).items():
            deltas[name] += step * direction
    probabilities = []
    with torch.no_grad(), subset.edited(deltas):
        for text in texts:
            ids = adapter.to_ids(text)
            target = adapter.to_ids(text + NAME)[len(ids)]
            probabilities.append(adapter.run(torch.tensor([ids]))[0, -1].softmax(-1)[target])
    return float(torch.stack(probabilities).mean())


if __name__ == "__main__":
    main()
