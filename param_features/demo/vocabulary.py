"""The tokens of the demo stories and their ids, kept in the tokenizer file beside the model's weights."""

import json
import random
from functools import cache
from pathlib import Path

from param_features.demo.grammar import tell

MODEL_DIR = Path(__file__).with_name("model")
WEIGHTS_FILE, CONFIG_FILE, TOKENIZER_FILE = "model.safetensors", "config.json", "tokenizer.json"

PAD, BOS, EOS, UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)
PIECE = r' ?\w+| ?"|[.,!?]'
"""What a token looks like: a word or a quotation mark with the space before it, or another punctuation mark."""


@cache
def read_vocabulary() -> dict[str, int]:
    """Token ids as the shipped tokenizer has them; read once, so do not change the dict."""
    tokenizer = json.loads((MODEL_DIR / TOKENIZER_FILE).read_text(encoding="utf-8"))
    return tokenizer["model"]["vocab"]


def collect_vocabulary(n_stories: int = 5000) -> dict[str, int]:
    """Give an id to each token of the grammar: special tokens first, then the others in alphabetical order.

    Args:
        n_stories: How many stories to look through; the rarest word is in about one of 200.

    Returns:
        Token to id, in order of id.
    """
    rng = random.Random("vocabulary")
    met = {token for _ in range(n_stories) for token in tell(rng).tokens}
    ordered = [*SPECIAL_TOKENS, *sorted(met - set(SPECIAL_TOKENS))]
    return {token: index for index, token in enumerate(ordered)}
