"""circuitsvis' ColoredTokens as HTML: the script from inside its wheel, so that nothing is fetched from outside."""

import functools
import html
import importlib.resources
import json
import math
import uuid
from collections.abc import Sequence

from param_features.errors import NonFiniteError


def colored_tokens_block(tokens: Sequence[str], values: Sequence[float], *, bound: float) -> str:
    """One block of highlighted tokens in a div of its own; needs `script()` once before it on the page.

    Raises:
        NonFiniteError: A value is NaN or infinite.
    """
    if not all(math.isfinite(value) for value in values):
        raise NonFiniteError("Activations hold NaN or infinity, which would be drawn as nothing. Check the inputs.")
    # circuitsvis writes tokens as HTML, so they are escaped here: text that looks like a tag stays text.
    props = {
        "tokens": [html.escape(token) for token in tokens],
        "values": list(values),
        "minValue": -bound,
        "maxValue": bound,
    }
    name = f"pf-{uuid.uuid4().hex}"
    return (
        f'<div id="{name}" style="margin: 0.3em 0"></div><script>CircuitsVis.render('
        f'"{name}", CircuitsVis.ColoredTokens, {_script_safe(json.dumps(props))});</script>'
    )


@functools.cache
def script() -> str:
    """The circuitsvis bundle as a script element, 1.3 MB; it does nothing where the page has it already."""
    bundle = (importlib.resources.files("circuitsvis") / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return f"<script>if (!window.CircuitsVis) {{ {_script_safe(bundle)}; window.CircuitsVis = CircuitsVis; }}</script>"


def _script_safe(text: str) -> str:
    """Keep a closing tag inside a string from ending the script."""
    return text.replace("</", "<\\/")
