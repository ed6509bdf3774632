"""SAEs and transcoders: trained by sae-lens in one call, measured, and compared with parameter features."""

from param_features.sae.comparing import compare, compare_on
from param_features.sae.comparison import Comparison
from param_features.sae.matching import Matching, Pair
from param_features.sae.metrics import SaeMetrics, place_written, sae_metrics
from param_features.sae.site import find_place, first_tensor, with_first
from param_features.sae.train import train_sae

__all__ = [
    "Comparison",
    "Matching",
    "Pair",
    "SaeMetrics",
    "compare",
    "compare_on",
    "find_place",
    "first_tensor",
    "place_written",
    "sae_metrics",
    "train_sae",
    "with_first",
]
