"""`ParamFeatures`: what `decompose` returns and `load` gives back; one file for each thing that can be done with it."""

from dataclasses import fields
from typing import final

from param_features.features.developing import DevelopingFeatures
from param_features.features.intervening import IntervenedFeatures
from param_features.features.sharing import SharedFeatures
from param_features.features.training import TrainableFeatures
from param_features.features.viewing import ShownFeatures
from param_features.fitted import Fitted


@final
class ParamFeatures(ShownFeatures, IntervenedFeatures, TrainableFeatures, DevelopingFeatures, SharedFeatures):
    """Low-rank directions in parameter space, each of which matters for few inputs.

    A feature is a local gradient direction: features need not sum to W. Fields are those of `Fitted`.
    """

    @classmethod
    def of(cls, fitted: Fitted) -> "ParamFeatures":
        """What a fit left behind, with all that can be done with it; features that are whole already are given back."""
        if isinstance(fitted, cls):
            return fitted
        return cls(**{field.name: getattr(fitted, field.name) for field in fields(fitted)})
