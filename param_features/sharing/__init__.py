"""Sharing features through the Hugging Face hub: fetching them, pushing them, and the card that goes with them.

huggingface-hub is imported when the hub is asked: `pip install "param_features[hf]"`.
"""

from param_features.sharing.card import CARD, write_card
from param_features.sharing.picture import draw
from param_features.sharing.pushing import MESSAGE, PushTarget, check_name, push, push_folder
from param_features.sharing.settings import USUAL, CardSettings
from param_features.sharing.verdicts import verdict_sentences

__all__ = [
    "CARD",
    "CardSettings",
    "MESSAGE",
    "PushTarget",
    "USUAL",
    "check_name",
    "draw",
    "push",
    "push_folder",
    "verdict_sentences",
    "write_card",
]
