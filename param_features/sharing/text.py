"""Text of models and strangers inside Markdown: shown as it is, never read as Markdown or HTML."""

import re
from collections.abc import Iterable

_MOST = 300


def visible(text: str, most: int = _MOST) -> str:
    """The text as one line of at most `most` printable characters; others, such as those that hide text, are escaped."""
    shown = "".join(character if character.isprintable() else _escaped(character) for character in text[: most + 1])
    return shown if len(shown) <= most else f"{shown[:most]}…"


def code(text: str) -> str:
    """A code span, with more backticks around it than it has inside."""
    shown = visible(text) or " "
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if shown[0] in "` " or shown[-1] in "` " else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(lines: Iterable[str], language: str = "text") -> str:
    """A block of code, each line made visible, with more backticks around it than it has inside."""
    shown = "\n".join(visible(line) for line in lines)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def _escaped(character: str) -> str:
    return "⏎" if character == "\n" else character.encode("unicode_escape").decode()


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
