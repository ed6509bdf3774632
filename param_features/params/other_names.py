"""What a name that matches nothing may have meant: a part of a name, another library's name, or a regex."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_WORDS = {
    "q": ("w_q", "b_q", "q_proj", "query", "q_lin", "wq", "q"),
    "k": ("w_k", "b_k", "k_proj", "key", "k_lin", "wk", "k"),
    "v": ("w_v", "b_v", "v_proj", "value", "v_lin", "wv", "v"),
    "o": ("w_o", "b_o", "o_proj", "out_proj", "out_lin", "wo"),
    "in": ("w_in", "b_in", "up_proj", "c_fc", "fc1", "fc_in", "lin1", "dense_h_to_4h"),
    "out": ("w_out", "b_out", "down_proj", "fc2", "fc_out", "lin2", "dense_4h_to_h"),
    "gate": ("w_gate", "gate_proj"),
    "embed": ("w_e", "embed_tokens", "wte", "word_embeddings", "embed_in"),
    "pos": ("w_pos", "wpe", "embed_positions", "position_embeddings"),
    "unembed": ("w_u", "b_u", "lm_head", "embed_out"),
}
"""What libraries call the same weight."""

_ROLES = {word: role for role, words in _WORDS.items() for word in words}
_SHOWN = 3
_IS_REGEX = re.compile(r"[\\^$+|(){}]|\.\*")


class Place(NamedTuple):
    """Which weight a name means, whatever the library.

    Attributes:
        role: A key of `_WORDS`.
        layer: Its number; None for embeddings.
        is_bias: Whether the bias is meant.
    """

    role: str
    layer: int | None
    is_bias: bool


def place_of(name: str) -> Place | None:
    """The weight that a name means; None where no word of it is known."""
    words = [word for word in re.split(r"[.\[\]]", name.casefold()) if word]
    numbers = [int(word) for word in words if word.isdecimal()]
    leaf = next((word.lstrip("_") for word in reversed(words) if word not in ("weight", "bias")), "")
    role = _ROLES.get(leaf)
    if leaf in ("c_proj", "dense"):
        role = "out" if "mlp" in words or "output" in words and "attention" not in words else "o"
    if role is None:
        return None
    return Place(role, numbers[0] if numbers else None, words[-1] == "bias" or leaf.startswith("b_"))


def what_was_meant(text: str, known: Iterable[str]) -> str:
    """What a text that is no parameter's name may mean; empty where nothing is known of it."""
    known = list(dict.fromkeys(known))
    if any(character.isspace() for character in text):
        return "It reads like a text: was params= forgotten? The order is (model, params, tokens). "
    ending = [name for name in known if name.casefold().endswith(f".{text.casefold()}")]
    if ending:
        same_case = f"*.{text}" if any(name.endswith(f".{text}") for name in ending) else f"*{ending[0][-len(text) - 1 :]}"
        return f"{len(ending)} end in it, such as {_quoted(ending)}: {same_case!r} chooses all of them. "
    place = place_of(text)
    same = [name for name in known if place is not None and place_of(name) == place]
    if same:
        return f"That weight is {_quoted(same)} here. "
    regex = _as_regex(text)
    matching = [name for name in known if regex is not None and regex.fullmatch(name)]
    if matching:
        return f"As a regex it matches {len(matching)}, such as {_quoted(matching)}: give re.compile({text!r}). "
    return ""


def _as_regex(text: str) -> re.Pattern | None:
    if not _IS_REGEX.search(text):
        return None
    try:
        return re.compile(text)
    except re.error:
        return None


def _quoted(names: list[str]) -> str:
    return ", ".join(map(repr, names[:_SHOWN]))
