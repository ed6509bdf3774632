"""Fitting directions to harvested gradients."""

from param_features.fit.checkpoint import read_newest
from param_features.fit.checkpointing import Checkpoints, refuse_other_fit
from param_features.fit.curvature import curvatures
from param_features.fit.dictionary import Dictionary, GradientDictionary, Part, Readings, most_samples, overlaps_of
from param_features.fit.encoder import LINEAR, Encoder
from param_features.fit.hessian import fit_hessian
from param_features.fit.l3d import renormalize
from param_features.fit.loop import Fit, leading_directions, ranked_fit, ranking_bytes, start_bytes, strong_samples
from param_features.fit.off_target import OffTarget, joined_fits
from param_features.fit.pursuit import rounds_for
from param_features.fit.reading import Reading, Route, activations, mean_cotangents, read_gradients
from param_features.fit.reconstruction import reconstruction_error, square_errors
from param_features.fit.request import FitRequest
from param_features.fit.selection import batch_top_k, check_l0, threshold_for
from param_features.fit.settings import FitSettings, HessianSettings
from param_features.fit.training import Trainer, fit_bytes, fit_l3d

__all__ = [
    "Checkpoints",
    "Dictionary",
    "Encoder",
    "Fit",
    "GradientDictionary",
    "FitRequest",
    "FitSettings",
    "HessianSettings",
    "LINEAR",
    "OffTarget",
    "Part",
    "Reading",
    "Readings",
    "Route",
    "Trainer",
    "activations",
    "batch_top_k",
    "check_l0",
    "curvatures",
    "fit_bytes",
    "fit_hessian",
    "fit_l3d",
    "joined_fits",
    "leading_directions",
    "mean_cotangents",
    "most_samples",
    "overlaps_of",
    "ranked_fit",
    "ranking_bytes",
    "read_gradients",
    "read_newest",
    "reconstruction_error",
    "refuse_other_fit",
    "renormalize",
    "rounds_for",
    "square_errors",
    "start_bytes",
    "strong_samples",
    "threshold_for",
]
