"""A notebook with its stored outputs as a page of the site."""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

_SCRIPT = re.compile(r"<script.*?</script>", re.DOTALL)
_LINK = re.compile(r"\]\((\w+)\.ipynb")


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The page in markdown, and its pictures by name.

    Views are shown as the plain HTML that they carry; their scripts, which draw the same in a notebook, are left out.
    """
    pictures: dict[str, bytes] = {}
    parts: list[str] = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(_LINK.sub(r"](\1.md", source).replace("](../docs/", "](../"))
            continue
        parts.append(f"```python\n{source}\n```")
        parts += [_shown(output, path.stem, pictures) for output in cell["outputs"]]
    told = f"\nThis page is `demos/{path.name}` with the outputs stored in it.\n"
    first, *rest = parts
    return "\n\n".join([first + "\n" + told, *rest]) + "\n", pictures


def _shown(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    data = output.get("data", {"text/plain": output.get("text", "")})
    if "image/png" in data:
        name = f"{stem}_{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![Output of the cell above]({name})"
    if "text/html" in data:
        page = _SCRIPT.sub("", "".join(data["text/html"])).replace("\n", "&#10;")
        return f'<div class="cell-output">{page}</div>'
    return f'<pre class="cell-output"><code>{html.escape("".join(data["text/plain"]))}</code></pre>'.replace(
        "\n\n", "\n&#10;"
    )
