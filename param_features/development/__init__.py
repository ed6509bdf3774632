"""Parameter features through training: which examples train them, what they carry, how they share room, what to prune."""

from param_features.development.in_context import PrefixMatching, in_context_score, prefix_matching, token_losses
from param_features.development.local_learning import LearningCoefficient, learning_coefficient
from param_features.development.phases import change_points
from param_features.development.progress import ProgressLosses, progress_losses
from param_features.development.pushing import Pushes, pushes
from param_features.development.superposition import dimensionality, gini
from param_features.development.tickets import ticket_masks
from param_features.development.track_result import Track
from param_features.development.tracking import track
from param_features.development.trajectory import LossTrajectory, loss_trajectory

__all__ = [
    "LearningCoefficient",
    "LossTrajectory",
    "PrefixMatching",
    "ProgressLosses",
    "Pushes",
    "Track",
    "change_points",
    "dimensionality",
    "gini",
    "in_context_score",
    "learning_coefficient",
    "loss_trajectory",
    "prefix_matching",
    "progress_losses",
    "pushes",
    "ticket_masks",
    "token_losses",
    "track",
]
