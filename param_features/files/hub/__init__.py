"""Saved features on the Hugging Face hub, fetched."""

from param_features.files.hub.client import hub_errors, hub_library
from param_features.files.hub.fetch import FILES, fetched_folder, located
from param_features.files.hub.places import features_place, is_hub_name, local_path

__all__ = ["FILES", "features_place", "fetched_folder", "hub_errors", "hub_library", "is_hub_name", "local_path", "located"]
