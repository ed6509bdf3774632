"""What the public names stand for, read from the sources without importing them."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "param_features"
FOREIGN = {f"{PACKAGE}.adapters": ROOT / "adapters"}  # lies at the top level
LAID_OUT = ROOT / "build" / "docs" / PACKAGE

_DIRECTIVE = re.compile(r"^::: (\S+)\n(    options:\n)?", re.MULTILINE)
_FENCED = re.compile(r"(^ *```.*?^ *```$|^#.*?$|^::: .*?$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!\[)`pf\.([\w.]+)(\([^`\n]*\))?`")


def lay_out() -> None:
    """Link package and adapters into one folder, as they lie once installed."""
    LAID_OUT.mkdir(parents=True, exist_ok=True)
    for link in LAID_OUT.iterdir():
        link.unlink()
    for place in [*(ROOT / PACKAGE).iterdir(), *FOREIGN.values()]:
        link = LAID_OUT / place.name
        if place.name != "__pycache__":
            link.symlink_to(place)


def with_directives(markdown: str) -> str:
    """`::: pf.name` with the place where it is defined, headed by the name that users write."""

    def placed(match: re.Match[str]) -> str:
        name = match[1]
        module, _, leaf = name.rpartition(".")
        target = resolved(name.removeprefix("pf.")) if name.startswith("pf.") else resolved(leaf, module)
        target, label = target or name, name if name.startswith("pf.") else leaf
        return f'::: {target}\n    options:\n      heading: "{name}"\n      toc_label: "{label}"\n'

    return _DIRECTIVE.sub(placed, markdown)


def linked(text: str) -> str:
    """Inline code that is a documented name, as a link to it; fenced blocks and headings stay as they are."""
    documented = documented_names()

    def link(match: re.Match[str]) -> str:
        name = match[1].rstrip(".")
        return f"[{match[0]}][{documented[name]}]" if name in documented else match[0]

    parts = _FENCED.split(text)
    return "".join(part if index % 2 else _CODE.sub(link, part) for index, part in enumerate(parts))


@cache
def documented_names() -> dict[str, str]:
    """The names after `pf.` that have a directive under docs/, each with the place where it is defined."""
    pages = (ROOT / "docs").glob("**/*.md")
    names = [name for page in pages for name in re.findall(r"^::: pf\.(\S+)", page.read_text(), re.MULTILINE)]
    return {name: place for name in names if (place := resolved(name))}


@cache
def resolved(name: str, package: str = PACKAGE) -> str | None:
    """The dotted place where `package.name` is defined; None where there is nothing of that name."""
    head, _, rest = name.partition(".")
    place = _imports(package).get(head) or (f"{package}.{head}" if _file(f"{package}.{head}") else None)
    if place is None:
        return f"{package}.{name}" if head in _defined(package) else None
    if rest and _file(place):
        return resolved(rest, place)
    module, _, leaf = place.rpartition(".")
    found = place if _file(place) or module == package else resolved(leaf, module)
    return f"{found}.{rest}" if found and rest else found


def _file(module: str) -> Path | None:
    """The source file of a module."""
    for name, folder in FOREIGN.items():
        if module == name or module.startswith(name + "."):
            path = folder.joinpath(*module[len(name) :].strip(".").split("."))
            break
    else:
        path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    return ast.parse(path.read_text() if path else "")


def _imports(module: str) -> dict[str, str]:
    """What a module imports from where."""
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in _tree(module).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


def _defined(module: str) -> set[str]:
    """What a module defines itself."""
    found: set[str] = set()
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found
