"""Changes of the decomposed weights: reading what the user gives as one, and telling it in features."""

from param_features.changes.in_features import Coordinates, coordinates, projected
from param_features.changes.weights import ParamMatrices, chosen_matrices, read_state

__all__ = ["Coordinates", "ParamMatrices", "chosen_matrices", "coordinates", "projected", "read_state"]
