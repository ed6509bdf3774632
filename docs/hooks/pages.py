"""Pages that the site takes from outside docs/, the order of folders, and the names of the API.

The sources are read, never imported: `names.py` follows the imports of each `__init__.py`.
"""

import re
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from mkdocs.utils import get_relative_url

sys.path.insert(0, str(Path(__file__).parent))
from names import ROOT, linked, with_directives
from notebooks import notebook_page

_NOTEBOOK = re.compile(r"\]\(((?:\.\./)?)\.\./demos/(\w+)\.ipynb")
SHIM = "scripts/iframe-worker.js"
PICTURES = ("first_features.png", "report.png")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in navigation entries that stand for a folder."""
    config.nav = [_filled(entry) for entry in config.nav]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pictures and the notebooks of demos/ to the site."""
    for name in PICTURES:
        files.append(File.generated(config, f"demos/{name}", abs_src_path=str(ROOT / "demos" / name)))
    for path in _notebooks():
        page, pictures = notebook_page(path)
        files.append(File.generated(config, f"demos/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"demos/{name}", content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Resolve `::: pf.name`, link `pf.name` in the text to its documentation and a notebook to its page."""
    return with_directives(linked(_NOTEBOOK.sub(r"](\1demos/\2.md", markdown)))


def on_post_page(output: str, page: Page, **_: object) -> str:
    """Take the script that lets search work without a server from this site, not from the network."""
    return output.replace("https://unpkg.com/iframe-worker/shim", get_relative_url(SHIM, page.url))


def on_post_template(output_content: str, **_: object) -> str:
    """The same for the page of errors, which may be shown in any folder."""
    return output_content.replace("https://unpkg.com/iframe-worker/shim", f"/{SHIM}")


def _filled(entry: Any) -> Any:
    """An entry of the navigation with folders replaced by their pages; within a list, by those that the list has not."""
    if isinstance(entry, dict):
        return {title: _filled(value) for title, value in entry.items()}
    if not isinstance(entry, list):
        return _pages_of(entry) if entry.endswith("/") else entry
    filled: list[Any] = []
    for each in entry:
        is_folder = isinstance(each, str) and each.endswith("/")
        filled += [page for page in _pages_of(each) if page not in entry] if is_folder else [_filled(each)]
    return filled


def _pages_of(folder: str) -> list[str]:
    """The pages of a folder, its index first, then as the index links to them, then the rest by name."""
    if folder == "demos/":
        return [f"demos/{path.stem}.md" for path in _notebooks()]
    names = {path.name for path in (ROOT / "docs" / folder).glob("*.md")}
    index = ["index.md"] if "index.md" in names else []
    text = (ROOT / "docs" / folder / "index.md").read_text() if index else ""
    told = [name for name in re.findall(r"\]\((?:\./)?([\w-]+\.md)", text) if name in names]
    return [str(PurePosixPath(folder) / name) for name in dict.fromkeys(index + told + sorted(names))]


def _notebooks() -> list[Path]:
    return sorted((ROOT / "demos").glob("*.ipynb"))
