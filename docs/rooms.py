"""The rooms of the library, their order and their imports; `python docs/rooms.py` draws docs/pictures/rooms.svg of them.

Sources are read, never imported. The order and what each room may import are the tables of docs/reference/architecture.md.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "param_features"
PAGE = ROOT / "docs" / "reference" / "architecture.md"
PICTURE = ROOT / "docs" / "pictures" / "rooms.svg"

_ROW = re.compile(r"^\| `(\w+)(?:/|\.py)` \| .+ \| (.+) \|$", re.MULTILINE)
_ALL_BEFORE = "those above"


@dataclass(frozen=True)
class Room:
    """A room as the page has it.

    Attributes:
        name: Its folder in the package, or its module.
        floor: Heading of the rooms that it stands with.
        may_import: Names of rooms.
    """

    name: str
    floor: str
    may_import: frozenset[str]


@cache
def rooms() -> tuple[Room, ...]:
    """The rooms from bottom to top."""
    section = PAGE.read_text().partition("\n## The rooms\n")[2].partition("\n## ")[0]
    found: list[Room] = []
    for part in section.split("\n### ")[1:]:
        for name, allowed in _ROW.findall(part):
            names = [room.name for room in found] if allowed == _ALL_BEFORE else re.findall(r"`(\w+)`", allowed)
            found.append(Room(name, part.partition("\n")[0], frozenset(names)))
    return tuple(found)


@dataclass(frozen=True)
class Import:
    """One name that a file imports from the package.

    Attributes:
        path: The file, from the repository's root.
        line: Where in it.
        importer: The file's module.
        module: The module that is imported, or imported from.
        is_first: Whether the statement stands at the top level of the file, under no condition.
    """

    path: str
    line: int
    importer: str
    module: str
    is_first: bool

    @property
    def rooms(self) -> tuple[str, str]:
        """The room of the file, and the room that it imports."""
        return room_of(self.importer), room_of(self.module)

    def __str__(self) -> str:
        """Where it stands and what it imports."""
        return f"{self.path}:{self.line} imports {self.module}"


def room_of(module: str) -> str:
    """The room that a module lies in; the package's own names are a room too."""
    return (module.split(".") + ["__init__"])[1]


@cache
def modules() -> dict[str, Path]:
    """Every module of the package with its file; adapters are reached by the package's link."""
    package = ROOT / PACKAGE
    files = {*package.glob("**/*.py"), *(package / "adapters").glob("**/*.py")}
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files}
    return {names[path].removesuffix(".__init__"): path for path in sorted(files)}


def is_face(module: str) -> bool:
    """Whether other rooms may import it: a folder's `__init__.py`, or a room that is one module."""
    return module.count(".") <= 1 or modules()[module].name == "__init__.py"


@cache
def imports() -> tuple[Import, ...]:
    """Everything that files of the package import from it."""
    return tuple(each for module, path in modules().items() for each in imports_of(module, path, path.read_text()))


def imports_of(importer: str, path: Path, source: str) -> Iterator[Import]:
    """What one file imports from the package, in the order of its lines."""
    tree = ast.parse(source)
    first = {id(node) for node in tree.body}
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)]
    for node in sorted(nodes, key=lambda node: node.lineno):
        for module in _imported(node, importer, path):
            yield Import(str(path.relative_to(ROOT)), node.lineno, importer, module, id(node) in first)


def _imported(node: ast.AST, importer: str, path: Path) -> Iterator[str]:
    """The modules of the package that a statement imports; of `from room import name` the module `name`, if it is one."""
    match node:
        case ast.Import():
            yield from (alias.name for alias in node.names if alias.name in modules())
        case ast.ImportFrom():
            source = _source(node, importer, path)
            if source in modules():
                names = [f"{source}.{alias.name}" for alias in node.names]
                yield from dict.fromkeys(name if name in modules() else source for name in names)
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=[ast.Constant(value=str(name))]
        ):
            if name in modules():
                yield name


def _source(node: ast.ImportFrom, importer: str, path: Path) -> str:
    """The module of `from … import …`; the dots of a relative import count from the file's folder."""
    parts = importer.split(".")
    folder = parts[: len(parts) - node.level + (path.name == "__init__.py")] if node.level else []
    return ".".join([*folder, *([node.module] if node.module else [])])


def circles() -> list[tuple[str, ...]]:
    """Modules that import each other, directly or by way of others; each such set once."""
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for each in imports():
        graph[each.importer].add(each.module)
    return circles_in(graph)


def circles_in(graph: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """The sets of nodes of which each is reached from each."""
    reach = {node: _reached(graph, node) for node in graph}
    circling = [node for node in graph if node in reach[node]]
    return sorted({tuple(sorted(other for other in reach[node] if node in reach[other])) for node in circling})


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    """The modules that importing one brings in, itself only where it comes back to it."""
    reached: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += graph[module]
    return reached


_CELL, _MARGIN, _NAMES = 22, 18, 110
_COLOURS = ("#5b6b7b", "#2b6cb0", "#2f855a", "#b7791f", "#c05621")
_READING = ("Each square is a room. A dot in its row is a room", "that it imports: the square straight below the dot.")


def drawing() -> str:
    """The rooms as SVG: squares on a diagonal, the lowest room at the bottom, and a dot for each room that one imports."""
    names = [room.name for room in rooms()]
    floors = list(dict.fromkeys(room.floor for room in rooms()))
    colours = {room.name: _COLOURS[floors.index(room.floor)] for room in rooms()}
    side = len(names) * _CELL
    width, height = side + _NAMES + 2 * _MARGIN, side + 2 * _MARGIN
    parts = [f'<rect width="{width}" height="{height}" rx="8" fill="#fbfbf9"/>']
    for name in names:
        parts += _row(name, names, colours)
    for index, floor in enumerate(reversed(floors)):
        y = height - _MARGIN - (len(floors) + 3 - index) * _CELL
        parts.append(_square(side - 9 * _CELL, y, _COLOURS[len(floors) - 1 - index]))
        parts.append(_text(side - 8 * _CELL + 4, y, floor))
    for index, line in enumerate(_READING):
        parts.append(_text(side - 9 * _CELL + 3, height - _MARGIN - (2 - index) * _CELL, line, colour="#555"))
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">\n{body}\n</svg>\n'


def _row(name: str, names: list[str], colours: dict[str, str]) -> Iterator[str]:
    """A room's square, its name, and the dots of what it imports."""
    column = names.index(name)
    y = _MARGIN + (len(names) - 1 - column) * _CELL
    yield f'<path d="M{_MARGIN} {y + _CELL / 2:g}H{_MARGIN + column * _CELL}" stroke="#e3e3dd"/>'
    yield f'<path d="M{_MARGIN + column * _CELL + _CELL / 2:g} {y}V{_MARGIN}" stroke="#e3e3dd"/>'
    imported = {each.rooms[1] for each in imports() if each.rooms[0] == name} - {name}
    for other in sorted(imported, key=names.index):
        x = _MARGIN + names.index(other) * _CELL + _CELL / 2
        yield f'<circle cx="{x:g}" cy="{y + _CELL / 2:g}" r="4.5" fill="{colours[other]}"/>'
    yield _square(_MARGIN + column * _CELL, y, colours[name])
    yield _text(_MARGIN + (column + 1) * _CELL + 4, y, name)


def _square(x: float, y: float, colour: str) -> str:
    return f'<rect x="{x + 3:g}" y="{y + 3:g}" width="{_CELL - 6}" height="{_CELL - 6}" rx="3" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, colour: str = "#222") -> str:
    font = 'font-family="system-ui, sans-serif" font-size="13"'
    return f'<text x="{x:g}" y="{y + _CELL - 7:g}" {font} fill="{colour}">{escape(text)}</text>'


if __name__ == "__main__":
    PICTURE.write_text(drawing())
