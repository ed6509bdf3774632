"""Per-sample gradients: factored where a layer rule exists, dense otherwise, the same answer either way."""

from param_features.gradients.changes import OutputGraph, n_together, output_changes
from param_features.gradients.cotangents import AgainstMean
from param_features.gradients.engine import CotangentOf, GradientEngine, Routes, at_least_float32, check_finite_output
from param_features.gradients.harvest import Harvester, HarvestSettings, OwnReferences, SamplePlan, limited, plan_samples
from param_features.gradients.on_disk import DiskGradients, near
from param_features.gradients.outputs import outputs_at
from param_features.gradients.plan import OutputInfo, check_influence, inspect_output, plan_engine
from param_features.gradients.rules import LayerRule, register_rule
from param_features.gradients.sparse import is_fast_on, sparse_product
from param_features.gradients.state import copied_buffers, held_still, plain_kernels
from param_features.gradients.store import GradientStore, SampleGradients, flatten, square_norm
from param_features.gradients.types import Dense, Factored, Gradient, Gradients, Indexed, Kept, summed, together

__all__ = [
    "AgainstMean",
    "CotangentOf",
    "Dense",
    "DiskGradients",
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
    "OutputInfo",
    "OwnReferences",
    "Routes",
    "SampleGradients",
    "SamplePlan",
    "at_least_float32",
    "check_finite_output",
    "check_influence",
    "copied_buffers",
    "flatten",
    "held_still",
    "inspect_output",
    "is_fast_on",
    "limited",
    "n_together",
    "near",
    "output_changes",
    "outputs_at",
    "plain_kernels",
    "plan_engine",
    "plan_samples",
    "register_rule",
    "sparse_product",
    "square_norm",
    "summed",
    "together",
]
