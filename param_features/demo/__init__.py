"""A small language model and the stories it was trained on, shipped with the library.

The stories come from a grammar whose every rule and probability is known, so features found in the model can be scored
against `rules`, and the model's loss against `entropy`. `load_model` needs `pip install "param_features[lens]"`, `load_hf`
`pip install "param_features[hf]"`; the rest neither.
"""

from param_features.demo.grammar import RULES
from param_features.demo.hugging_face import load_hf
from param_features.demo.loading import build_model, load_model
from param_features.demo.rows import entropy, rules, stories, surprisal, tokens

__all__ = ["RULES", "build_model", "entropy", "load_hf", "load_model", "rules", "stories", "surprisal", "tokens"]
