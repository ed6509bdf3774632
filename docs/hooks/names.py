"""What the public names stand for, read from the sources without importing them."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "param_features"

_DIRECTIVE = re.compile(r"^::: (\S+)\n(    options:\n)?", re.MULTILINE)
_FENCED = re.compile(r"(^ *```.*?^ *```$|^#.*?$|^::: .*?$)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(?<!\[)`pf\.([\w.]+)(\([^`\n]*\))?`")


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
        return _defined_in(package, head, name)
    if rest and _file(place):
        return resolved(rest, place)
    module, _, leaf = place.rpartition(".")
    definition = place if _file(place) or module == package else resolved(leaf, module)
    return f"{definition}.{rest}" if definition and rest else definition


def _defined_in(module: str, head: str, name: str) -> str | None:
    """`module.name`, or what it wraps: `load = with_methods(run.load, …)` is shown with the signature of `run.load`."""
    definition = _definitions(module).get(head)
    match definition:
        case ast.Call(func=ast.Name(id=wrapper), args=[ast.Name() | ast.Attribute() as wrapped, *_]):
            if isinstance(_definitions(module).get(wrapper), ast.FunctionDef):
                return resolved(ast.unparse(wrapped), module)
    return f"{module}.{name}" if definition else None


def _file(module: str) -> Path | None:
    """The source file of a module."""
    path = ROOT.joinpath(*module.split("."))
    return next((each for each in (path / "__init__.py", path.with_suffix(".py")) if each.is_file()), None)


@cache
def _tree(module: str) -> ast.Module:
    path = _file(module)
    return ast.parse(path.read_text() if path else "")


def _imports(module: str) -> dict[str, str]:
    """What a module imports from where."""
    return {
        alias.asname or alias.name: f"{_imported_from(node, module)}.{alias.name}"
        for node in _tree(module).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def _imported_from(node: ast.ImportFrom, module: str) -> str:
    """The module of `from … import …`; the dots of a relative import count from the folder of the file that has it."""
    path = _file(module)
    is_package = path is not None and path.name == "__init__.py"
    parts = module.split(".")
    folder = parts[: len(parts) - node.level + is_package] if node.level else []
    return ".".join([*folder, *([node.module] if node.module else [])])


def _definitions(module: str) -> dict[str, ast.AST]:
    """What a module defines itself: classes and functions, and what is assigned to its other names."""
    definitions: dict[str, ast.AST] = {}
    for node in _tree(module).body:
        match node:
            case ast.ClassDef() | ast.FunctionDef():
                definitions[node.name] = node
            case ast.Assign(targets=[*targets], value=value):
                definitions |= {target.id: value for target in targets if isinstance(target, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                definitions[name] = node
    return definitions
