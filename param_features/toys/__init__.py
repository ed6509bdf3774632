"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from param_features.toys.circle import CircleScores, CircleToy, circle
from param_features.toys.groups import GroupsToy, groups
from param_features.toys.linear_map import LinearMapToy, linear_map, recovered_map
from param_features.toys.planted_toy import PlantedToy, Scores
from param_features.toys.tms import superposition
from param_features.toys.toy import Toy

__all__ = [
    "CircleScores",
    "CircleToy",
    "GroupsToy",
    "LinearMapToy",
    "PlantedToy",
    "Scores",
    "Toy",
    "circle",
    "groups",
    "linear_map",
    "recovered_map",
    "superposition",
]
