"""Tokens to strings and back with a Hugging Face tokenizer, which every library here carries."""

from collections.abc import Sequence
from typing import Any

_WORD_START = "\u2581"  # sentencepiece's mark of a leading space, which decoding one token drops


def ids_of(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, with the tokenizer's own special tokens."""
    return list(tokenizer(text)["input_ids"])


def strings_of(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """One string per id; joined, they read as the text did."""
    texts = tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    starts_word = [isinstance(piece, str) and piece.startswith(_WORD_START) for piece in pieces]
    return [f" {text.lstrip(' ')}" if start else text for text, start in zip(texts, starts_word, strict=True)]
