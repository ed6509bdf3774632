"""Token highlights as plain HTML: red is negative, blue positive, as circuitsvis draws them.

These stand wherever no script runs: in an untrusted notebook, after the first cell's output is gone, in a mail.
"""

import html
from collections.abc import Sequence

_MARK = "outline:2px solid #d97706;position:relative;font-weight:bold;text-decoration:underline"
_BOX = "background-color:#fff;color:#111;padding:3px 4px;line-height:1.5;white-space:pre-wrap;overflow-wrap:anywhere"
_FAINT = 0.02


def static_tokens(tokens: Sequence[str], values: Sequence[float], *, bound: float, marked: int | None = None) -> str:
    """Draw tokens as HTML, escaped, on backgrounds of strength |value| / bound, the marked token outlined and bold.

    Every token has its own background and text colour, so that it reads the same on a light and on a dark page.
    """
    cells = [
        _cell(token, value, bound, is_marked=index == marked)
        for index, (token, value) in enumerate(zip(tokens, values, strict=True))
    ]
    return f'<div style="{_BOX}">{"".join(cells)}</div>'


def _cell(token: str, value: float, bound: float, *, is_marked: bool) -> str:
    strength = min(1.0, abs(value) / bound) if bound else 0.0
    text = html.escape(token).replace("\n", "⏎\n")
    if strength < _FAINT and not is_marked:
        return f"<span>{text}</span>"
    faded = round(255 * (1 - strength))
    red, green, blue = (255, faded, faded) if value < 0 else (faded, faded, 255)
    colour = "#fff" if (299 * red + 587 * green + 114 * blue) / 255_000 < 0.6 else "#111"
    mark = f";{_MARK}" if is_marked else ""
    return f'<span title="{value:.4g}" style="background-color:rgb({red},{green},{blue});color:{colour}{mark}">{text}</span>'
