"""`ParamFeatures` and `ParamComponents`, and the calls that return them."""

from param_features.features.entry import Featured, decompose, load, sweep, track
from param_features.features.param_components import ParamComponents
from param_features.features.param_features import ParamFeatures

__all__ = ["Featured", "ParamComponents", "ParamFeatures", "decompose", "load", "sweep", "track"]
