"""Tokens to strings and back with a Hugging Face tokenizer, which every library here carries."""

from collections.abc import Sequence
from typing import Any

_WORD_START = "\u2581"  # sentencepiece's mark of a leading space, which decoding one token drops


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with the tokenizer's own special tokens, none of them twice where the text has it already."""
    return marked_once(tokenizer, text, list(tokenizer(text)["input_ids"]))


def marked_once(tokenizer: Any, text: str, ids: list[int]) -> list[int]:
    """Take off the special tokens that a tokenizer puts at the ends of a text which has them there itself."""
    for name in ("bos", "cls"):
        ids = ids[_n_added(tokenizer, name, text, ids) :]
    backwards = ids[::-1]
    for name in ("eos", "sep"):
        backwards = backwards[_n_added(tokenizer, name, text, backwards, at_end=True) :]
    return backwards[::-1]


def _n_added(tokenizer: Any, name: str, text: str, ids: Sequence[int], *, at_end: bool = False) -> int:
    """How many more of a special token the ids begin with than the text; 0 where the text has none there."""
    token, number = getattr(tokenizer, f"{name}_token", None), getattr(tokenizer, f"{name}_token_id", None)
    if not token or number is None:
        return 0
    n_own = 0
    while text.endswith(token) if at_end else text.startswith(token):
        text, n_own = text.removesuffix(token) if at_end else text.removeprefix(token), n_own + 1
    n_ids = next((place for place, own in enumerate(ids) if own != number), len(ids))
    return max(0, n_ids - n_own) if n_own else 0


def strings_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string per id; joined, they read as the text did."""
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    starts_word = [isinstance(piece, str) and piece.startswith(_WORD_START) for piece in pieces]
    return [f" {text.lstrip(' ')}" if start else text for text, start in zip(texts, starts_word, strict=True)]
