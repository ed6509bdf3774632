"""Lottery tickets on modular addition: masks by features, saliency, magnitude and chance, by several seeds.

Prints test accuracy right after masking the MLP's input matrix of the trained model, and the step at which the model,
trained again with the mask, is right on 99 % of the pairs held out; about five minutes a seed on a core.

    python -m benchmarks.tickets [SEEDS]
"""

import sys
from collections.abc import Iterator

import torch

import param_features as pf

RULES = ("features", "saliency", "magnitude", "random")
KEEPS = (0.5, 0.3, 0.1, 0.05)
RETRAINED = ((0.3, 0), (0.1, 0), (0.1, 50))  # share kept, checkpoint to start from


def rows(seed: int) -> Iterator[str]:
    """Lines of the table for one seed of the model."""
    training = pf.toys.modular_training(seed=seed)
    features = training.toy.decompose(seed=seed)
    yield f"seed {seed}: dense at step {training.first_step(0.99)}"
    for keep in KEEPS:
        right = {by: training.pruned(pf.development.ticket_masks(features, keep, by=by, seed=seed))[1] for by in RULES}
        yield f"  kept {keep:.0%}, as trained: " + ", ".join(f"{by} {share:.3f}" for by, share in right.items())
    for keep, rewind in RETRAINED:
        steps = {
            by: first_step(training, pf.development.ticket_masks(features, keep, by=by, seed=seed), rewind) for by in RULES
        }
        yield f"  kept {keep:.0%}, again from step {rewind}: " + ", ".join(f"{by} {at}" for by, at in steps.items())


def first_step(training: pf.toys.ModularTraining, masks: dict[str, torch.Tensor], rewind: int) -> int | None:
    """Until 99 % of the pairs held out are right, from the start on; None where they never are."""
    again = training.retrained(masks, rewind=rewind, n_steps=training.steps[-1] - rewind, until=0.99)
    found = again.first_step(0.99)
    return None if found is None else found + rewind


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number in range(int(sys.argv[1]) if len(sys.argv) > 1 else 3):
        for line in rows(number):
            print(line, flush=True)  # noqa: T201
