"""What gradients are taken of: inputs, divergences and references, read and checked."""

from param_features.problem.arguments import ModelInputs, real_first
from param_features.problem.background import Background, ReadBackground, read_background
from param_features.problem.divergence import (
    KL,
    REFERENCES,
    CurvedDivergence,
    CustomDivergence,
    Divergence,
    Outputs,
    Reference,
    SquaredError,
    check_curved,
    check_reference,
    read_divergence,
)
from param_features.problem.inputs import check_tokens, read_inputs
from param_features.problem.output import OutputInfo, inspect_output
from param_features.problem.pairs import PairInputs, Pairs, as_pairs, check_pairs, read_pairs
from param_features.problem.positions import (
    SamplePositions,
    is_position_record,
    position_record,
    read_positions,
    recorded_positions,
)
from param_features.problem.problem import (
    ChosenParams,
    Problem,
    check_model,
    match_model,
    read_model,
    read_problem,
    say_notices,
)
from param_features.problem.question import Question
from param_features.problem.saved_inputs import input_tensors, inputs_from
from param_features.problem.stages import Stage, stage_generator
from param_features.problem.streaming import cut_rows, delimited, encoded, stream_rows
from param_features.problem.targets import targeted, with_targets

__all__ = [
    "Background",
    "ChosenParams",
    "CurvedDivergence",
    "CustomDivergence",
    "Divergence",
    "KL",
    "ModelInputs",
    "OutputInfo",
    "Outputs",
    "PairInputs",
    "Pairs",
    "Problem",
    "Question",
    "REFERENCES",
    "ReadBackground",
    "Reference",
    "SamplePositions",
    "SquaredError",
    "Stage",
    "as_pairs",
    "check_curved",
    "check_model",
    "check_pairs",
    "check_reference",
    "check_tokens",
    "cut_rows",
    "delimited",
    "encoded",
    "input_tensors",
    "inputs_from",
    "inspect_output",
    "is_position_record",
    "match_model",
    "position_record",
    "read_background",
    "read_divergence",
    "read_inputs",
    "read_model",
    "read_pairs",
    "read_positions",
    "read_problem",
    "real_first",
    "recorded_positions",
    "say_notices",
    "stage_generator",
    "stream_rows",
    "targeted",
    "with_targets",
]
