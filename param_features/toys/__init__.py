"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from param_features.toys.circle import CircleScores, circle
from param_features.toys.digits import DigitScores, digits
from param_features.toys.groups import groups
from param_features.toys.linear_map import linear_map, recovered_map
from param_features.toys.planted import planted_circuits
from param_features.toys.planted_toy import PlantedToy, Scores
from param_features.toys.squares import squares
from param_features.toys.tms import superposition
from param_features.toys.toy import Toy
from param_features.toys.xor import xor

__all__ = [
    "CircleScores",
    "DigitScores",
    "PlantedToy",
    "Scores",
    "Toy",
    "circle",
    "digits",
    "groups",
    "linear_map",
    "planted_circuits",
    "recovered_map",
    "squares",
    "superposition",
    "xor",
]
