"""Token highlights as coloured text: red is negative, blue positive, as in circuitsvis."""

import os
import re
from collections.abc import Sequence
from typing import Any

from param_features.measure import visible

_RESET = "\x1b[0m"
_MARKED = re.compile(r"\x1b\[1;4m(?:\x1b\[[0-9;]*m)?([^\x1b]*)\x1b\[0m")
_STYLE = re.compile(r"\x1b\[[0-9;]*m")


def takes_colour(stream: Any) -> bool:
    """Whether a stream shows colours: a terminal does, unless `NO_COLOR` is set (no-color.org) or `TERM` is dumb."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def plain(text: str) -> str:
    """The text without styles, the marked token in «»."""
    return _STYLE.sub("", _MARKED.sub("«\\1»", text))


def colored_tokens(tokens: Sequence[str], values: Sequence[float], *, bound: float, marked: int | None = None) -> str:
    """Draw tokens for a terminal on backgrounds of strength |value| / bound, the marked token bold and underlined."""
    cells = [
        _cell(token, value, bound, is_marked=index == marked)
        for index, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    return "".join(cells)


def _cell(token: str, value: float, bound: float, *, is_marked: bool) -> str:
    strength = min(1.0, abs(value) / bound) if bound else 0.0
    text = visible(token)
    style = "\x1b[1;4m" if is_marked else ""
    if strength < 0.05:
        return f"{style}{text}{_RESET}" if style else text
    faded = round(255 * (1 - strength * 0.75))
    red, green, blue = (255, faded, faded) if value < 0 else (faded, faded, 255)
    return f"{style}\x1b[38;2;0;0;0;48;2;{red};{green};{blue}m{text}{_RESET}"
