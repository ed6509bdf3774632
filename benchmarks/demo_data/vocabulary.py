"""How the tokens of the demo stories look, and the ids that they get before the model is trained."""

import random

from benchmarks.demo_data.grammar import tell
from param_features.demo.vocabulary import BOS, EOS, PAD, UNKNOWN

SPECIAL_TOKENS = (PAD, BOS, EOS, UNKNOWN)
PIECE = r' ?\w+| ?"|[.,!?]'
"""What a token looks like: a word or a quotation mark with the space before it, or another punctuation mark."""


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
