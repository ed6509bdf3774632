"""Models whose features are known, and the score of a fit against them: a method is believed where truth can be checked."""

from param_features.toys.tms import superposition
from param_features.toys.toy import Scores, Toy, score

__all__ = ["Scores", "Toy", "score", "superposition"]
