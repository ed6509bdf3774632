"""Parameter features of the real model next to SAEs of the same texts: docs/how-to/compare-with-an-sae.md.

python -m benchmarks.next_to_sae FOLDER, with the folder that holds load_stories.py; ten minutes on one core.
"""

import sys
from pathlib import Path

import torch

import param_features as pf
from benchmarks.stories import fit_stories
from param_features.measure.counterpart_pairs import correlation_table
from param_features.measure.examples import shares
from param_features.sae.sides import random_unit, sae_side
from param_features.sae.site import activations_at

HOOK = "blocks.2.hook_resid_post"


def main(folder: Path, out: Path) -> None:
    """Fit, train, compare on held-out rows, print, and write a page for each SAE."""
    features, train, held_out = fit_stories(folder)
    model = features.bound_engine("compare").adapter.model
    print(features)
    for n_features in (100, 512):
        sae = pf.sae.train_sae(model, HOOK, train, n_features=n_features, l0=5, seed=0, progress=False)
        sae.save_model(out / f"sae_{n_features}")
        print(f"\nSAE of {n_features}", pf.sae.sae_metrics(sae, model, held_out), sep="\n")
        comparison = pf.compare(features, sae, held_out)
        print("", comparison, sep="\n")
        print(features.report(out / f"next_to_sae_{n_features}.html", tokens=held_out, sae=sae))
        for seed in (1, 2):
            other = pf.compare(features, sae, held_out, seed=seed)
            counts = [(len(side.shared), side.n_above("random")) for side in (other.of_features, other.of_sae)]
            print(f"seed {seed}: (with a counterpart, random ones) of the features {counts[0]}, of the SAE's {counts[1]}")
        print_strengths(features, comparison, held_out)
        for pair in sorted(comparison.table(), key=lambda pair: -pair.correlation)[:8]:
            print(pair)


def print_strengths(features: pf.ParamFeatures, comparison: pf.sae.Comparison, tokens: torch.Tensor) -> None:
    """What other strengths of parameter features would give: features above 95 % of random directions, either way."""
    theirs = sae_side(
        comparison.sae, activations_at(features.bound_engine("compare").adapter, comparison.inputs, HOOK)
    ).strengths
    generator = torch.Generator().manual_seed(1)
    sets = [features]
    for _ in range(2):
        drawn = random_unit(features.v_out, generator)
        sets.append(features.with_directions(drawn))
    acts = [each.activations(tokens).flatten(0, 1) for each in sets]
    strengths = {
        "share": shares,
        "|activation|": torch.abs,
        "positive and negative parts": lambda values: torch.cat([values.clamp(min=0), (-values).clamp(min=0)], 1),
    }
    for name, strength in strengths.items():
        tables = [correlation_table(strength(each), theirs) for each in acts]
        if len(tables[0]) > features.n_features:
            tables = [torch.maximum(*table.split(features.n_features)) for table in tables]
        print(f"{name}: {_above(tables, 1)} of features, {_above(tables, 0)} of the SAE's")


def _above(tables: list[torch.Tensor], axis: int) -> str:
    own, calibration, control = (table.amax(axis) for table in tables)
    threshold = calibration.quantile(0.95)
    return f"{int((own > threshold).sum())} (random {int((control > threshold).sum())})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path("runs"))
