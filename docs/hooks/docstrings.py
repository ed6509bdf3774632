"""Docstrings as the site shows them: paragraphs that begin with a word of their own, and links to documented names."""

import re
import sys
from pathlib import Path
from typing import Any

from griffe import Docstring, Extension, Object

sys.path.insert(0, str(Path(__file__).parent))
from names import linked

_PARAGRAPH = re.compile(r"^(Source|Cost|Memory|Differs|Departures): +(.+(?:\n[ \t]*\S.*)*)", re.MULTILINE)


class SiteDocstrings(Extension):
    """Keeps `Source: …` and `Cost: …` paragraphs, which griffe would take for boxes."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring = Docstring(
                linked(_PARAGRAPH.sub(_marked, obj.docstring.value)),
                lineno=obj.docstring.lineno,
                endlineno=obj.docstring.endlineno,
                parent=obj,
                parser=obj.docstring.parser,
                parser_options=obj.docstring.parser_options,
            )


def _marked(match: re.Match[str]) -> str:
    lines = [line.strip() for line in match[2].splitlines()]
    return f"**{match[1]}:** {' '.join(lines)}"
