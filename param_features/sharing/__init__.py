"""Sharing features through the Hugging Face hub: fetching them, pushing them, and the card that goes with them.

huggingface-hub is imported when the hub is asked: `pip install "param_features[hf]"`.
"""

from param_features.sharing.fetch import fetched_folder, located
from param_features.sharing.places import features_place, is_hub_name, local_path
from param_features.sharing.settings import CardSettings

__all__ = ["CardSettings", "features_place", "fetched_folder", "is_hub_name", "local_path", "located"]
