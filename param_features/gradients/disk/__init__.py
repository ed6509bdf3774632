"""Gradients on disk: harvested once, read by any number of decompositions."""

from param_features.gradients.disk.compression import Compression
from param_features.gradients.disk.reading import DiskGradients, near
from param_features.gradients.disk.recipe import Recipe, recipe_of, refuse_differences, sum_of_data
from param_features.gradients.disk.store import FactorStore
from param_features.gradients.disk.writing import harvested

__all__ = [
    "Compression",
    "DiskGradients",
    "FactorStore",
    "Recipe",
    "harvested",
    "near",
    "recipe_of",
    "refuse_differences",
    "sum_of_data",
]
