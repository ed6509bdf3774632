"""Components that sum to the weights: SPD's and VPD's decomposition, by masks at the layers' outputs."""

from param_features.fit.components.dictionary import ComponentDictionary
from param_features.fit.components.gates import importances_for_masks, masks_of
from param_features.fit.components.importance import (
    NETWORKS,
    ForModel,
    ImportanceNet,
    PerComponent,
    PerSite,
    network_shaped,
    network_size,
)
from param_features.fit.components.losses import Distance, drawn_sources, masks_from
from param_features.fit.components.parts import Parts, least_square_parts
from param_features.fit.components.passes import CleanPass, MaskedModel, Masks, not_applied_once
from param_features.fit.components.settings import PRESETS, ComponentSettings
from param_features.fit.components.starting import pairs_of
from param_features.fit.components.training import ComponentTrainer, fit_components

__all__ = [
    "NETWORKS",
    "PRESETS",
    "CleanPass",
    "ComponentDictionary",
    "ComponentSettings",
    "ComponentTrainer",
    "Distance",
    "ForModel",
    "ImportanceNet",
    "MaskedModel",
    "Masks",
    "Parts",
    "PerComponent",
    "PerSite",
    "drawn_sources",
    "fit_components",
    "importances_for_masks",
    "least_square_parts",
    "masks_from",
    "masks_of",
    "network_shaped",
    "network_size",
    "not_applied_once",
    "pairs_of",
]
