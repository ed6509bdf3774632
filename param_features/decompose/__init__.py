"""Fitting directions to harvested gradients."""

from param_features.decompose.encoder import LINEAR, Encoder
from param_features.decompose.fitting import fit_l3d
from param_features.decompose.hessian import fit_hessian
from param_features.decompose.keeping import Checkpoints
from param_features.decompose.loop import Fit
from param_features.decompose.off_target import OffTarget, joined_fits
from param_features.decompose.reconstruction import reconstruction_error, square_errors
from param_features.decompose.selection import batch_top_k, check_l0, threshold_for
from param_features.decompose.settings import FitSettings, HessianSettings

__all__ = [
    "LINEAR",
    "Checkpoints",
    "Encoder",
    "Fit",
    "FitSettings",
    "HessianSettings",
    "OffTarget",
    "batch_top_k",
    "check_l0",
    "fit_hessian",
    "fit_l3d",
    "joined_fits",
    "reconstruction_error",
    "square_errors",
    "threshold_for",
]
