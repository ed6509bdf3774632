"""From contents to a file: one page with its style, script, data and plotly inside, which asks nobody for anything."""

import base64
import functools
import gzip
import html
import importlib.resources
import json
from os import PathLike
from pathlib import Path
from typing import Any

from param_features.errors import MissingExtraError

_SCRIPTS = ("text.js", "plots.js", "table.js", "sae.js", "audit.js", "circuit.js", "feature.js", "main.js")


def write_report(path: str | PathLike, title: str, contents: dict[str, Any]) -> Path:
    """Write a page with its style, script, data and plotly inside.

    Returns:
        The file's path.

    Raises:
        MissingExtraError: plotly is not installed.
    """
    file = Path(path)
    page = page_of(title, contents)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page, encoding="utf-8")
    return file


def page_of(title: str, contents: dict[str, Any]) -> str:
    """The page's HTML. Data lie in it as JSON that no tag can end; the script shows them as text, never as HTML."""
    parts = {
        "title": html.escape(title),
        "style": _part("style.css"),
        "data": json.dumps(contents, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "plotly": _plotly(),
        "script": "".join(map(_part, _SCRIPTS)),
    }
    before, *pieces = _part("page.html").split("{{")
    return before + "".join(parts[name] + after for name, after in (piece.split("}}", 1) for piece in pieces))


def _part(name: str) -> str:
    return (importlib.resources.files("param_features.report") / "page" / name).read_text(encoding="utf-8")


@functools.cache
def _plotly() -> str:
    """Plotly's script as base64 of gzip, which the browser undoes: 2 MB instead of 4.8."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise MissingExtraError(
            "A report needs plotly, which is not installed. Install it: pip install 'param_features[plots]'."
        ) from error
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 9, mtime=0)).decode()
