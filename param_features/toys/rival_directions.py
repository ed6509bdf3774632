"""Directions that cost nothing to find, beside a fit's: what it must beat wherever it is scored, on the same gradients."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit import Reading, read_gradients
from param_features.fit.formats import leading_factors
from param_features.fitted import Fitted
from param_features.gradients import Harvester, HarvestSettings, SampleGradients, SampleProbe, square_norm
from param_features.measure import ControlDictionary, principal_directions, random_directions
from param_features.problem import ModelInputs


def rivals(features: Fitted, inputs: ModelInputs, *, n_slots: int, seed: int) -> dict[str, Reading]:
    """The fit's activations, and those of as many directions that were found without a fit.

    Cost: one harvest of `inputs`, and its principal directions.

    Args:
        features: The fit.
        inputs: Data that rivals are made from; for a score of held-out data, other data.
        n_slots: Positions of each row to take.
        seed: Of draws of directions, positions and references.

    Returns:
        `fit`: V_in itself. Overlaps with unit-norm directions: `random`, Gaussian factors of the fit's rank; `sampled`,
        leading factors of single samples' gradients, drawn by their norm, which is where the fit starts; `principal`, the
        leading principal directions of the gradients, of full rank. `norm`: ‖∇‖ alone, one number a sample.
    """
    generator = torch.Generator().manual_seed(seed)
    store = _gradients(features, inputs, n_slots, generator)
    n, rank = features.n_features, int(features.config["rank"])
    weights = store.square_norm().sqrt().cpu()
    drawn = torch.multinomial(weights, n, replacement=int((weights > 0).sum()) < n, generator=generator)
    matrices = {name: gradient.dense().matrix for name, gradient in store.rows(drawn).items()}
    random = random_directions(store.rows(slice(0, 1)), n, rank, generator)
    return {
        "fit": features.v_in.inner,
        "random": ControlDictionary.of(random).overlaps,
        "sampled": ControlDictionary.of(leading_factors(matrices, rank)).overlaps,
        "principal": ControlDictionary.of_rows(principal_directions(store, n, generator)).overlaps,
        "norm": lambda gradients: square_norm(gradients).clamp(min=0).sqrt().unsqueeze(1),
    }


def read_all(
    features: Fitted, inputs: ModelInputs, readings: Mapping[str, Reading]
) -> dict[str, Float[Tensor, "row pos feature"]]:
    """Every reading of every sample's gradient, D's cotangent averaged over the fit's references as in its activations.

    Cost: one backward pass per position, whatever the number of readings.

    Args:
        features: The fit, with its model.
        inputs: Every row is read; pos is 1 when a sample is an input.
        readings: What to take from the gradients, by name.

    Raises:
        NotBoundError: The features were loaded without a model.
    """
    return read_gradients(features.bound_engine("score"), features.question, inputs, readings)


def _gradients(features: Fitted, inputs: ModelInputs, n_slots: int, generator: torch.Generator) -> SampleGradients:
    probe, question = SampleProbe(features.bound_engine("score"), inputs), features.question
    harvester = Harvester(probe, question.divergence, question.drawn, HarvestSettings())
    return harvester.store(inputs, n_slots, generator, progress=False, title="rivals")
