"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from param_features.toys.modular_progress import FourierProgress, fourier_progress
from param_features.toys.modular_runs import ModularTraining, SumLoss, modular_training
from param_features.toys.modular_toy import FourierScores, ModularToy
from param_features.toys.planted_toy import PlantedToy, Scores
from param_features.toys.tms import superposition
from param_features.toys.toy import Toy

__all__ = [
    "FourierProgress",
    "FourierScores",
    "ModularToy",
    "ModularTraining",
    "PlantedToy",
    "Scores",
    "SumLoss",
    "Toy",
    "fourier_progress",
    "modular_training",
    "superposition",
]
