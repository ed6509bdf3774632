"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from param_features.toys.planted_toy import PlantedToy, Scores
from param_features.toys.tms import superposition
from param_features.toys.toy import Toy

__all__ = ["PlantedToy", "Scores", "Toy", "superposition"]
