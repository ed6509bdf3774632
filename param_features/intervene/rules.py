"""What each rule of `features.ablate` chooses for given features: the coefficients of one step along them."""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from param_features.errors import FeatureCountError
from param_features.fitted import Fitted
from param_features.intervene.ablate import Search, by_noise, by_weight, check_rule
from param_features.measure import examples_of
from param_features.problem import ModelInputs

_N_TOP = 20
"""Top examples of each feature on which the rule `search` measures."""


def ablation_coefficients(
    features: Fitted,
    chosen: Iterable[int],
    *,
    rule: str,
    tokens: Any,
    inputs: Any,
    target: float,
    scale: float,
    seed: int,
) -> dict[int, float]:
    """Each chosen feature's step δ by one of the three rules; see `ParamFeatures.ablate`.

    Raises:
        SettingError: `rule`, `target` or `scale` is not accepted.
        FeatureCountError: There is no such feature, or none is given.
        SearchError: The divergence never falls to the target along these features.
        NotBoundError: The features were loaded without a model.
    """
    check_rule(rule)
    engine, numbers = features.bound_engine("ablate"), chosen_features(features, chosen)
    directions = features.v_out.rows(numbers)
    if rule == "weight":
        steps = by_weight(directions, engine.subset)
    elif rule == "noise":
        steps = by_noise(directions, engine.subset, scale=scale, seed=seed)
    else:
        rows, samples = top_samples(features, numbers, features.inputs_or_examples(tokens, inputs))
        steps = Search(engine, features.question, rows, samples, target).coefficients(directions)
    return dict(zip(numbers, steps.tolist(), strict=True))


def chosen_features(features: Fitted, chosen: int | Iterable[int]) -> list[int]:
    """The numbers of some features, each once, in the order given.

    Raises:
        FeatureCountError: There is no such feature, or none is given.
    """
    numbers = list(dict.fromkeys([chosen] if isinstance(chosen, int) else chosen))
    for feature in numbers:
        features.check_feature(feature)
    if not numbers:
        raise FeatureCountError(f"No feature is given. Features are numbered 0 to {features.n_features - 1}.")
    return numbers


def top_samples(features: Fitted, chosen: list[int], inputs: ModelInputs) -> tuple[ModelInputs, Int[Tensor, " sample"]]:
    """Rows that hold the features' top samples, and which of the rows' samples these are."""
    top = [example for feature in chosen for example in examples_of(features, feature, _N_TOP, inputs)]
    numbers = sorted({example.row for example in top})
    rows = inputs.rows(numbers)
    if not features.bound_engine("ablate").per_position:
        return rows, torch.arange(len(numbers))
    is_sample = rows.sample_mask
    is_real = torch.ones(len(rows), rows.n_pos, dtype=torch.bool) if is_sample is None else is_sample.cpu()
    sample_at = is_real.flatten().cumsum(0).reshape(is_real.shape) - 1
    places = [(numbers.index(example.row), example.position) for example in top]
    cells = [(row, int(rows.places[row, position])) for row, position in places]
    return rows, torch.tensor(sorted({int(sample_at[cell]) for cell in cells}))
