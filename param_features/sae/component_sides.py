"""Components on samples, and random parts that read the same inputs to stand beside them."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit import threshold_for
from param_features.fit.components import ComponentDictionary
from param_features.fitted import Fitted
from param_features.problem import ModelInputs


def component_readings(
    features: Fitted, inputs: ModelInputs, generator: torch.Generator, *, n_random: int
) -> list[Float[Tensor, "sample component"]]:
    """Importances, and how much sets of random parts of the same matrices read.

    A random part reads along a random direction; of each matrix as many are kept as are needed of its components, those that
    read most, by the size of what they read. Cost: a forward pass for each set.
    """
    engine, dictionary = features.bound_engine("compare"), cast(ComponentDictionary, features.dictionary)
    importances = dictionary.read(engine, features.question, inputs).real().activations
    sets, counts = [importances], [parts.n for parts in dictionary.parts.values()]
    for _ in range(n_random):
        readings = dictionary.with_random(generator).read(engine, features.question, inputs).real()
        sets.append(_as_many(readings.overlaps.abs(), importances, counts))
    return sets


def _as_many(
    sizes: Float[Tensor, "sample component"], importances: Float[Tensor, "sample component"], counts: list[int]
) -> Float[Tensor, "sample component"]:
    """The largest of each matrix's sizes, as many as importances above 0 there; zero elsewhere."""
    kept = []
    for some, needed in zip(sizes.split(counts, 1), importances.split(counts, 1), strict=True):
        n_needed = float((needed > 0).sum(1).double().mean())
        kept.append(some * (some >= threshold_for(some, n_needed)) if n_needed else torch.zeros_like(some))
    return torch.cat(kept, 1)
