"""circuitsvis' components as HTML: the script from inside its wheel, so that nothing is fetched from outside.

circuitsvis' own `_repr_html_` asks google.com whether it is online, so it is never called.
"""

import functools
import html
import importlib.resources
import json
import math
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from param_features.errors import NonFiniteError

_JOINER = "\u2060"
"""Has no width and ends no word."""

_FLUSH = "window.pfViews.splice(0).forEach(draw => draw());"
"""Draws every view that waits, since an output may reach the page before the one that brings the script."""


def check_finite(values: Iterable[float]) -> None:
    """Refuse numbers that have no colour.

    Raises:
        NonFiniteError: A value is NaN or infinite.
    """
    if not all(math.isfinite(value) for value in values):
        raise NonFiniteError("Activations hold NaN or infinity, which would be drawn as nothing. Check the inputs.")


def literal(token: str) -> str:
    """Change a token so that it reads the same where a component writes it as HTML and where it writes it as text.

    circuitsvis does both with one string: HTML in the line, text in the tooltip, where `&lt;` would show. A joiner without
    width after every `<` and `&` makes neither start anything in HTML, and cannot be seen in either. Ends of lines get a
    sign, since circuitsvis shows none.
    """
    return token.replace("<", f"<{_JOINER}").replace("&", f"&{_JOINER}").replace("\n", "⏎\n")


def block(component: str, props: Mapping[str, Any], static: str, *, style: str = "") -> str:
    """One component in a div of its own, which shows `static` until the script is on the page, before or after.

    Args:
        component: Name in circuitsvis' bundle.
        props: What it is given, as JSON; tokens have gone through `literal`.
        static: Safe HTML that stands in for it.
        style: A rule for something inside, such as `.colored-tokens { … }`.
    """
    name = f"pf-{uuid.uuid4().hex}"
    rules = f"<style>#{name} {style}</style>" if style else ""
    data = json.dumps(props, allow_nan=False).replace("<", "\\u003c")
    render = f'() => CircuitsVis.render("{name}", CircuitsVis.{component}, {data})'
    return (
        f'{rules}<div id="{name}" style="margin:0.3em 0">{static}</div>'
        f"<script>(window.pfViews = window.pfViews || []).push({render}); if (window.CircuitsVis) {_FLUSH}</script>"
    )


@functools.cache
def script() -> str:
    """The circuitsvis bundle as a script element, 1.3 MB; it does nothing where the page has it already."""
    bundle = (importlib.resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    bundle = bundle.replace("</", "<\\/").replace("//# sourceMappingURL=iife.js.map", "")
    return f"<script>if (!window.CircuitsVis) {{ {bundle}; window.CircuitsVis = CircuitsVis; }}</script>"


def whole_page(title: str, body: str) -> str:
    """A complete HTML page that asks for nothing, with the script in it once."""
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    style = (
        "<style>:root { color-scheme: light dark } "
        "body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 1em auto; padding: 0 1em }</style>"
    )
    return (
        f'<!doctype html><html lang="en"><head>{head}<title>{html.escape(title)}</title>{style}</head>'
        f"<body>{script()}{body}</body></html>\n"
    )
