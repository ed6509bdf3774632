"""SAEs of sae-lens: trained in one call, measured, and compared with parameter features."""

from param_features.sae.compare import compare
from param_features.sae.comparison import Comparison, Matching, Pair
from param_features.sae.metrics import SaeMetrics, sae_metrics
from param_features.sae.train import train_sae

__all__ = ["Comparison", "Matching", "Pair", "SaeMetrics", "compare", "sae_metrics", "train_sae"]
