"""TMS 5-2 over sparsity: dimensionality of W's columns, and of the fitted parameter features beside it.

    python -m benchmarks.superposition [--starts 8] [--seed 0] [--plot FILE]

Five features in two hidden units, importance 0.8ⁱ, at 14 probabilities; every start counts. A model is "alone" where two
columns have a dimension each, "pairs" where four have one half (two antipodal pairs), "pentagon" where all five have 2/5,
each to 0.1; "both" is one alone and a pair; the rest are other geometries. Features are fitted to the start of the lowest
loss. They are directions in the parameters; the place of a feature in the hidden units is its d_out factor. About a CPU
minute on one thread.
"""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

import param_features as pf
from benchmarks import toys
from param_features.toys.training import sparse_uniform

PROBABILITIES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
SHAPES = {"alone": (1, 1, 0, 0, 0), "both": (1, 0.5, 0.5, 0, 0), "pairs": (0.5, 0.5, 0.5, 0.5, 0), "pentagon": (0.4,) * 5}
TOLERANCE = 0.1


def main() -> None:
    """Train, fit, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.process_time()
    found = toys.superposition_over_sparsity(PROBABILITIES, n_starts=asked.starts, seed=asked.seed)
    columns = torch.stack([torch.stack([pf.development.dimensionality(w.T) for w in of]) for of in found.weights])
    best = found.losses.argmin(1).tolist()
    print(
        f"{asked.starts} starts each\n\n| probability | "
        + " | ".join(SHAPES)
        + " | other | lowest loss: columns of W | features: in the parameters | in the hidden units | error (PCA) |"
    )
    print("|---" * (len(SHAPES) + 6) + "|")
    in_parameters, in_hidden = [], []
    for place, chance in enumerate(PROBABILITIES):
        kinds = [shape(values) for values in columns[place]]
        features = fitted(found, place, best[place], asked.seed)
        in_parameters.append(pf.development.dimensionality(features))
        in_hidden.append(pf.development.dimensionality(features.v_out.factors["weight"][0][:, :, 0].detach()))
        shares = " | ".join(str(kinds.count(name)) for name in (*SHAPES, "other"))
        shown = " | ".join(map(said, (columns[place, best[place]], in_parameters[-1], in_hidden[-1])))
        errors = f"{features.metrics['reconstruction_error']:.2f} ({features.metrics['control_pca']:.2f})"
        print(f"| {chance:g} | {shares} | {shown} | {errors} |", flush=True)
    print(f"\n{time.process_time() - begun:.0f} CPU s")
    if asked.plot:
        sets = {
            "columns of W, every start": columns.flatten(1),
            "columns of W, lowest loss": torch.stack([of[b] for of, b in zip(columns, best, strict=True)]),
        }
        sets |= {
            "features, in the parameters": torch.stack(in_parameters),
            "features, in the hidden units": torch.stack(in_hidden),
        }
        pf.plot.save(pf.plot.dimensionality(sets, PROBABILITIES), asked.plot)


def fitted(found: toys.TiedModels, place: int, start: int, seed: int) -> pf.ParamFeatures:
    """Five features of one model's W."""
    chance = found.probabilities[place]
    inputs = sparse_uniform(3000, 5, chance, torch.Generator().manual_seed(seed + 1))
    call = {"n_features": 5, "l0": max(0.5, 5 * chance), "divergence": "se", "steps": 1000}
    return pf.decompose(found.model(place, start), "weight", inputs=inputs, seed=seed, progress=False, **call)


def shape(values: Tensor) -> str:
    """Which of the shapes these dimensionalities are."""
    ordered = values.sort(descending=True).values
    return next(
        (name for name, wanted in SHAPES.items() if float((ordered - torch.tensor(wanted)).abs().max()) < TOLERANCE), "other"
    )


def said(values: Tensor) -> str:
    """Largest first."""
    return " ".join(f"{value:.2f}" for value in values.sort(descending=True).values.tolist())


if __name__ == "__main__":
    main()
