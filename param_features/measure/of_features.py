"""What features do on inputs: their examples, densities, and errors beside the controls'."""

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.measure.examples import Example, Ranking, top_examples
from param_features.measure.l0_curve import L0Curve, default_l0s, errors_by_l0, harvest_halves
from param_features.problem import ModelInputs, real_first

_METRICS = "Their `metrics` say what is left of the model under few of them."


def examples_of(features: Fitted, feature: int, n: int, inputs: ModelInputs, *, by: Ranking | None = None) -> list[Example]:
    """The samples of some inputs that a feature matters most for; see `ParamFeatures.top_examples`."""
    features.check_feature(feature)
    engine = features.bound_engine("top_examples")
    acts, strengths = features.ranked_on(inputs) if by is None else (features.activations_on(inputs), None)
    by_position = partial(real_first, inputs=inputs) if engine.per_position else partial(torch.unsqueeze, dim=1)
    acts, strengths = by_position(acts), None if strengths is None else by_position(strengths)
    rows = (inputs.token_rows or None) if engine.per_position else None
    return top_examples(acts, feature, rows, engine.adapter.to_strings, n=n, by=by or "share", strengths=strengths)


def densities_of(features: Fitted, inputs: ModelInputs) -> Float[Tensor, " feature"]:
    """Share of the samples that keep each feature."""
    return (features.readings_on(inputs).real().codes != 0).double().mean(0)


def curve_of(
    features: Fitted, inputs: ModelInputs, *, l0s: Sequence[float] | None = None, n_samples: int, seed: int = 0
) -> L0Curve:
    """Reconstruction error at several l0 beside the controls'; see `ParamFeatures.errors_by_l0`.

    Raises:
        SettingError: `n_samples` is not positive, or these are components.
    """
    if n_samples < 1:
        raise SettingError(f"n_samples={n_samples} must be at least 1; a few thousand is usual.")
    dictionary = features.dictionary.of_gradients("errors_by_l0() rebuilds gradients from few features", _METRICS)
    engine, generator = features.bound_engine("errors_by_l0"), torch.Generator().manual_seed(seed)
    halves = harvest_halves(engine, features.question, inputs, n_samples=n_samples, generator=generator)
    l0s = default_l0s(features.metrics["l0"], features.n_features) if l0s is None else l0s
    return errors_by_l0(dictionary, halves, engine, l0s=l0s, generator=generator)
