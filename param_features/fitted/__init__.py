"""What a fit leaves behind: features with their records, saved and read."""

from param_features.fitted.fitted import Fitted
from param_features.fitted.metrics import ALWAYS, Metrics, is_counted
from param_features.fitted.saved import SavedFeatures, read_saved, write_saved

__all__ = ["ALWAYS", "Fitted", "Metrics", "SavedFeatures", "is_counted", "read_saved", "write_saved"]
