"""What a decomposition takes: time, memory and disk before the run, and refusing what cannot fit."""

from param_features.estimate.result import Estimate
from param_features.estimate.room import fit_in_room
from param_features.estimate.run import estimate
from param_features.estimate.sizes import Sizes

__all__ = ["Estimate", "Sizes", "estimate", "fit_in_room"]
