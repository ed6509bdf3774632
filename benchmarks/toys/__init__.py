"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from benchmarks.toys.circle import CircleScores, CircleToy, circle
from benchmarks.toys.circuit_scores import CircuitScores
from benchmarks.toys.digits import DigitScores, DigitsToy, digits
from benchmarks.toys.groups import GroupsToy, groups
from benchmarks.toys.induction import induction, induction_checkpoints
from benchmarks.toys.labels import LabelScores, LabelToy
from benchmarks.toys.linear_map import LinearMapToy, linear_map, recovered_map
from benchmarks.toys.planted import planted_circuits
from benchmarks.toys.relay import RelayToy, relay
from benchmarks.toys.saturated import SaturatedToy, saturated
from benchmarks.toys.squares import SquaresToy, squares
from benchmarks.toys.stories import stories
from benchmarks.toys.tms_sparsity import TiedModels, superposition_over_sparsity
from benchmarks.toys.xor import XorToy, xor
from param_features.toys.modular_progress import FourierProgress, fourier_progress
from param_features.toys.modular_runs import ModularTraining, SumLoss, modular_training
from param_features.toys.modular_toy import FourierScores, ModularToy, modular_addition
from param_features.toys.planted_toy import PlantedToy, Scores
from param_features.toys.tms import superposition
from param_features.toys.toy import Toy

__all__ = [
    "CircleScores",
    "CircleToy",
    "CircuitScores",
    "DigitScores",
    "DigitsToy",
    "FourierProgress",
    "FourierScores",
    "GroupsToy",
    "LabelScores",
    "LabelToy",
    "LinearMapToy",
    "ModularToy",
    "ModularTraining",
    "PlantedToy",
    "RelayToy",
    "SaturatedToy",
    "Scores",
    "SquaresToy",
    "SumLoss",
    "TiedModels",
    "Toy",
    "XorToy",
    "circle",
    "digits",
    "fourier_progress",
    "groups",
    "induction",
    "induction_checkpoints",
    "linear_map",
    "modular_addition",
    "modular_training",
    "planted_circuits",
    "recovered_map",
    "recovered_map",
    "relay",
    "saturated",
    "squares",
    "stories",
    "superposition",
    "superposition_over_sparsity",
    "xor",
]
