"""Measuring features: activations, top examples, top logits, metrics and their controls."""

from param_features.measure.agreement import Match, correlations, match_directions
from param_features.measure.background_effects import background_metrics, off_target, on_target
from param_features.measure.clusters import Cluster, Clusters, find_clusters
from param_features.measure.component_agreement import Agreement, agreement_of
from param_features.measure.component_controls import each_control, random_parts, shuffled, singular_parts, strongest
from param_features.measure.controls import (
    ControlDictionary,
    control_bytes,
    control_dictionaries,
    control_errors,
    dense_together,
    dictionary_error,
    principal_directions,
    random_directions,
    random_like,
)
from param_features.measure.counterpart_pairs import (
    Counterparts,
    correlation_table,
    counterparts,
    feature_chunks,
    top_samples,
)
from param_features.measure.effects import distance, outputs_of, read_effects
from param_features.measure.examples import Example, Ranking, shares, top_examples
from param_features.measure.l0_curve import L0Curve, default_l0s, errors_by_l0, harvest_halves
from param_features.measure.label_purity import purity
from param_features.measure.labels import label_of, output_label, visible, windows_with
from param_features.measure.logits import TopLogits, top_logits
from param_features.measure.masked_rows import Candidate, MaskedRows, rounded
from param_features.measure.matching import match
from param_features.measure.metrics import held_out_metrics
from param_features.measure.of_components import alive_parts, component_metrics
from param_features.measure.of_features import curve_of, densities_of, examples_of
from param_features.measure.principal import EXTRA, SlicedPrincipal
from param_features.measure.ranking import auroc
from param_features.measure.weight import weight_by_head

__all__ = [
    "Cluster",
    "Clusters",
    "Agreement",
    "agreement_of",
    "alive_parts",
    "random_parts",
    "shuffled",
    "singular_parts",
    "strongest",
    "Candidate",
    "Counterparts",
    "ControlDictionary",
    "EXTRA",
    "Example",
    "L0Curve",
    "MaskedRows",
    "Match",
    "Ranking",
    "SlicedPrincipal",
    "TopLogits",
    "auroc",
    "component_metrics",
    "background_metrics",
    "control_bytes",
    "control_dictionaries",
    "control_errors",
    "correlation_table",
    "correlations",
    "counterparts",
    "curve_of",
    "default_l0s",
    "dense_together",
    "densities_of",
    "dictionary_error",
    "distance",
    "each_control",
    "errors_by_l0",
    "examples_of",
    "feature_chunks",
    "find_clusters",
    "harvest_halves",
    "held_out_metrics",
    "label_of",
    "match",
    "match_directions",
    "off_target",
    "on_target",
    "output_label",
    "outputs_of",
    "principal_directions",
    "purity",
    "rounded",
    "random_directions",
    "random_like",
    "read_effects",
    "shares",
    "top_examples",
    "top_logits",
    "top_samples",
    "visible",
    "weight_by_head",
    "windows_with",
]
