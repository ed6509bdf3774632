"""`ParamFeatures`, and the calls that return them."""

from param_features.features.entry import decompose, load, sweep, track
from param_features.features.param_features import ParamFeatures

__all__ = ["ParamFeatures", "decompose", "load", "sweep", "track"]
