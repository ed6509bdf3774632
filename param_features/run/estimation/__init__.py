"""What a decomposition takes: time, memory and disk before the run, and refusing what cannot fit."""

from param_features.run.estimation.estimating import estimate
from param_features.run.estimation.result import Estimate
from param_features.run.estimation.room import fit_in_room
from param_features.run.estimation.sizes import Sizes

__all__ = ["Estimate", "Sizes", "estimate", "fit_in_room"]
