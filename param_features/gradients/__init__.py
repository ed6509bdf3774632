"""Per-sample gradients: factored where a layer rule exists, dense otherwise, the same answer either way."""

from param_features.gradients.capture import argument, differentiable
from param_features.gradients.changed_model import following, is_as_planned
from param_features.gradients.changes import OutputGraph, has_forward_mode, n_together, output_changes
from param_features.gradients.cotangents import AgainstDrawn, AgainstMean
from param_features.gradients.double_backward import changes_along
from param_features.gradients.engine import (
    MOST_LOGITS,
    CotangentOf,
    GradientEngine,
    Routes,
    check_finite_output,
)
from param_features.gradients.harvester import Harvester, OwnReferences
from param_features.gradients.leading import leading_of_factored
from param_features.gradients.mapping import CANNOT_MAP
from param_features.gradients.outputs import outputs_at
from param_features.gradients.plan import build_engine, check_influence, plan_engine
from param_features.gradients.probe import SampleProbe
from param_features.gradients.references import collect_references, own_references, question_of
from param_features.gradients.rows import at_least_float32, by_row
from param_features.gradients.rules import LayerRule, register_rule, required_rule, rule_for
from param_features.gradients.sampling import HarvestSettings, SamplePlan, draw_positions, plan_rows, plan_samples
from param_features.gradients.sites import (
    Applied,
    MatrixSite,
    acting_at,
    acting_on,
    check_rules,
    no_matrix_at_one_place,
    sites_of,
    transposed,
    without_components,
)
from param_features.gradients.sparse import is_fast_on, sparse_product
from param_features.gradients.store import (
    CHUNK_BYTES,
    GradientStore,
    SampleGradients,
    bytes_per_sample,
    flatten,
    samples_together,
    square_norm,
    storable,
)
from param_features.gradients.types import (
    Dense,
    Factored,
    Gradient,
    Gradients,
    Indexed,
    Kept,
    compact,
    costs_less_as_matrices,
    summed,
    together,
)
from param_features.gradients.within_forward import WithinForward

__all__ = [
    "Applied",
    "MatrixSite",
    "WithinForward",
    "acting_at",
    "acting_on",
    "check_rules",
    "no_matrix_at_one_place",
    "sites_of",
    "transposed",
    "without_components",
    "CANNOT_MAP",
    "CHUNK_BYTES",
    "MOST_LOGITS",
    "AgainstDrawn",
    "AgainstMean",
    "CotangentOf",
    "Dense",
    "Factored",
    "Gradient",
    "GradientEngine",
    "GradientStore",
    "Gradients",
    "HarvestSettings",
    "Harvester",
    "Indexed",
    "Kept",
    "LayerRule",
    "OutputGraph",
    "OwnReferences",
    "Routes",
    "SampleGradients",
    "SamplePlan",
    "SampleProbe",
    "argument",
    "at_least_float32",
    "build_engine",
    "by_row",
    "bytes_per_sample",
    "changes_along",
    "check_finite_output",
    "check_influence",
    "collect_references",
    "compact",
    "costs_less_as_matrices",
    "differentiable",
    "draw_positions",
    "flatten",
    "following",
    "has_forward_mode",
    "is_as_planned",
    "is_fast_on",
    "leading_of_factored",
    "n_together",
    "output_changes",
    "outputs_at",
    "own_references",
    "plan_engine",
    "plan_rows",
    "plan_samples",
    "question_of",
    "register_rule",
    "required_rule",
    "rule_for",
    "samples_together",
    "sparse_product",
    "square_norm",
    "storable",
    "summed",
    "together",
]
