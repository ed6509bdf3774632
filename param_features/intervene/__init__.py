"""Editing weights along features: steering, ablating, exporting and training coefficients."""

from param_features.intervene.ablate import Search, by_noise, by_weight, check_rule
from param_features.intervene.combine import combined, moved
from param_features.intervene.copies import Edit, copied, located, write_for_good
from param_features.intervene.finetune import FineTuned, choose, tune
from param_features.intervene.late_backward import refusing_late_backward
from param_features.intervene.lora import CONFIG, peft, write_lora
from param_features.intervene.lora_comparison import LoraComparison
from param_features.intervene.masks import masks_from_importances, under_masks
from param_features.intervene.objective import read_off_target, with_penalty
from param_features.intervene.optimise import Budget
from param_features.intervene.rules import ablation_coefficients, chosen_features
from param_features.intervene.span import outside_span, span_coefficients, weight_norm, weight_overlaps
from param_features.intervene.steer import (
    Coefficients,
    Steering,
    combined_direction,
    deltas_of,
    read_coefficients,
    read_where,
    steering,
)
from param_features.intervene.task import Loss, read_task

__all__ = [
    "Budget",
    "CONFIG",
    "Coefficients",
    "Edit",
    "FineTuned",
    "LoraComparison",
    "Loss",
    "Search",
    "Steering",
    "ablation_coefficients",
    "by_noise",
    "by_weight",
    "check_rule",
    "choose",
    "chosen_features",
    "combined",
    "combined_direction",
    "copied",
    "deltas_of",
    "located",
    "masks_from_importances",
    "moved",
    "outside_span",
    "peft",
    "read_coefficients",
    "read_off_target",
    "read_task",
    "read_where",
    "refusing_late_backward",
    "span_coefficients",
    "steering",
    "tune",
    "under_masks",
    "weight_norm",
    "weight_overlaps",
    "with_penalty",
    "write_for_good",
    "write_lora",
]
