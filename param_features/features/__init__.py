"""`ParamFeatures`: what `decompose` returns and `load` gives back; one file for each thing that can be done with it."""

from typing import final

from param_features.features.developing import DevelopingFeatures
from param_features.features.intervening import IntervenedFeatures
from param_features.features.sharing import SharedFeatures
from param_features.features.training import TrainableFeatures
from param_features.features.viewing import ShownFeatures

__all__ = ["ParamFeatures"]


@final
class ParamFeatures(ShownFeatures, IntervenedFeatures, TrainableFeatures, DevelopingFeatures, SharedFeatures):
    """Low-rank directions in parameter space, each of which matters for few inputs.

    A feature is a local gradient direction: features need not sum to W. Fields are those of `FittedFeatures`.
    """
