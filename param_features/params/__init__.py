"""Named parameters of any model as matrices, and the interface by which models of foreign libraries are read."""

from param_features.params.adapter import Adapter, is_padded_on_the_right
from param_features.params.attention import Attention, Rotary
from param_features.params.edits import has_stand_ins, hooked, is_any_edited, overwrite, stand_ins
from param_features.params.fingerprints import checksum, fingerprint
from param_features.params.folds import Modes, default_fold, unfold_matrix
from param_features.params.layout import Layout
from param_features.params.listing import list_params
from param_features.params.locating import matching_views
from param_features.params.naming import class_names
from param_features.params.offloaded import device_for_inputs, untied, values_of
from param_features.params.quantised import packed_layers, quantised_layers
from param_features.params.readiness import check_present, check_ready, training_notice, why_never_chosen
from param_features.params.record import ParamRecord
from param_features.params.registry import adapter_for, register_adapter
from param_features.params.selection import ParamSpec, named_in, select
from param_features.params.state import copied_buffers, held_still, plain_kernels
from param_features.params.storage import has_rows_in, rows_of_part
from param_features.params.subset import ParamSubset
from param_features.params.text import marked_once
from param_features.params.views import Member, ParamInfo, ParamView, Site, Tap, all_parameters
from param_features.params.watched import Watched

__all__ = [
    "Adapter",
    "Attention",
    "Layout",
    "Modes",
    "Member",
    "ParamInfo",
    "ParamRecord",
    "ParamSpec",
    "ParamSubset",
    "ParamView",
    "Rotary",
    "Site",
    "Tap",
    "Watched",
    "adapter_for",
    "all_parameters",
    "check_present",
    "check_ready",
    "class_names",
    "copied_buffers",
    "default_fold",
    "device_for_inputs",
    "checksum",
    "fingerprint",
    "has_rows_in",
    "has_stand_ins",
    "held_still",
    "hooked",
    "is_any_edited",
    "is_padded_on_the_right",
    "list_params",
    "marked_once",
    "matching_views",
    "overwrite",
    "packed_layers",
    "plain_kernels",
    "quantised_layers",
    "register_adapter",
    "rows_of_part",
    "named_in",
    "select",
    "stand_ins",
    "training_notice",
    "unfold_matrix",
    "untied",
    "values_of",
    "why_never_chosen",
]
