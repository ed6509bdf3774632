"""Metrics on held-out samples, never without their controls."""

import torch

from param_features.fit import GradientDictionary, most_samples, overlaps_of, reconstruction_error
from param_features.fitted import Metrics, spread_name, spread_of_ratio
from param_features.gradients import SampleGradients
from param_features.machine import typed
from param_features.measure.controls import control_errors
from param_features.params import ParamSubset


@typed
@torch.no_grad()
def held_out_metrics(
    dictionary: GradientDictionary,
    *,
    train: SampleGradients,
    held_out: SampleGradients,
    subset: ParamSubset,
    rank: int,
    l0: float,
    generator: torch.Generator,
) -> Metrics:
    """Score a fit and its controls on the same held-out samples at the same l0, controls by the fit's own encoder too."""
    spread = held_out.spread(most_samples(dictionary.n_features))
    active = dictionary.codes(overlaps_of(dictionary.code_directions, spread)) != 0
    errors, square_norm = dictionary.square_errors(held_out, l0)
    values = {
        "reconstruction_error": reconstruction_error(errors, square_norm),
        "training_error": dictionary.error(train, l0),
        "l0": float(l0),
        "l0_at_threshold": float(active.sum(1).double().mean()),
        "density": float(active.double().mean(0).median()),
        "dead": float((~active).all(0).sum()),
        "n_features": dictionary.n_features,
        "n_samples": train.n_samples,
        "n_held_out": held_out.n_samples,
    }
    controls = control_errors(
        train,
        held_out,
        subset,
        n_features=dictionary.n_features,
        rank=rank,
        l0=l0,
        generator=generator,
        is_pursued=dictionary.encoder.n_rounds is not None,
    )
    values |= {name: reconstruction_error(*of) for name, of in controls.items()}
    same = {name: of[0] for name, of in controls.items() if len(of[0]) == len(errors)}  # fewer directions take more samples
    return Metrics(values | {spread_name(name): spread_of_ratio(errors, of_control) for name, of_control in same.items()})
