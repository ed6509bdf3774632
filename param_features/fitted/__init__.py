"""What a fit leaves behind: features with their records, saved and read."""

from param_features.fitted.fitted import Fitted
from param_features.fitted.metrics import ALWAYS, ALWAYS_OF_COMPONENTS, Metrics, is_counted, spread_name
from param_features.fitted.saved import SavedFeatures, read_saved, write_saved
from param_features.fitted.standing import LEAST_GAIN, N_SPREADS, Standing, higher, lower, spread_of_ratio

__all__ = [
    "ALWAYS",
    "ALWAYS_OF_COMPONENTS",
    "LEAST_GAIN",
    "N_SPREADS",
    "Fitted",
    "Metrics",
    "SavedFeatures",
    "Standing",
    "higher",
    "is_counted",
    "lower",
    "read_saved",
    "spread_name",
    "spread_of_ratio",
    "write_saved",
]
