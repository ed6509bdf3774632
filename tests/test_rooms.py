"""Imports go one way: the tables of docs/reference/architecture.md held against the code."""

import importlib.util
import sys
from pathlib import Path

import pytest

import param_features as pf

ROOT = Path(__file__).resolve().parents[1]
LOOSE = {"__init__", "__main__", "errors"}


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["rooms"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["rooms"]


def refuse(imports):
    """Fail with every import that breaks a rule, one a line."""
    assert not imports, "\n" + "\n".join(map(str, imports))


def between_rooms(house):
    return [each for each in house.imports() if each.rooms[0] != each.rooms[1]]


def test_the_page_has_every_room_once(house):
    names = [room.name for room in house.rooms()]
    assert sorted(names) == sorted({house.room_of(module) for module in house.modules()})
    assert len(house.imports()) > 1000


def test_no_room_imports_what_the_page_does_not_allow(house):
    allowed = {room.name: room.may_import for room in house.rooms()}
    refuse([each for each in between_rooms(house) if each.rooms[1] not in allowed[each.rooms[0]]])


def test_no_room_imports_past_the_face_of_another(house):
    refuse([each for each in between_rooms(house) if not house.is_face(each.module)])


def test_every_import_of_the_package_stands_at_the_top_of_its_file(house):
    """Neither in a function or class, nor under a condition such as `if TYPE_CHECKING`."""
    refuse([each for each in house.imports() if not each.is_first])


def test_no_modules_import_each_other_in_a_circle(house):
    refuse(house.circles())


def test_few_modules_lie_outside_the_rooms():
    assert {path.stem for path in (ROOT / "param_features").glob("*.py")} == LOOSE


def test_the_package_has_few_public_names():
    assert len(pf.__all__) <= 36
    assert len(set(pf.__all__)) == len(pf.__all__)


def test_the_library_does_not_import_its_benchmarks_or_tests(house):
    outside = ("import benchmarks", "from benchmarks", "import tests", "from tests", "import demos", "from demos")
    lines = [(path, line.strip()) for path in house.modules().values() for line in path.read_text().splitlines()]
    assert [f"{path}: {line}" for path, line in lines if line.startswith(outside)] == []


def test_what_an_import_is(house):
    """Each kind of import that the rules speak of is seen, so that an empty list above means something."""
    source = """
import param_features.measure
from param_features import run, circuits as graphs
from param_features.gradients.disk import FactorStore
from param_features.measure.examples import top_examples
if TYPE_CHECKING:
    from param_features.features import ParamFeatures
def late():
    from param_features.report import write_report
    importlib.import_module("param_features.sae")
"""
    path = ROOT / "param_features" / "fit" / "stand_in.py"
    found = list(house.imports_of("param_features.fit.stand_in", path, source))
    assert [(each.module.removeprefix("param_features."), each.is_first) for each in found] == [
        ("measure", True),
        ("run", True),
        ("circuits", True),
        ("gradients.disk", True),
        ("measure.examples", True),
        ("features", False),
        ("report", False),
        ("sae", False),
    ]
    assert [house.is_face(each.module) for each in found] == [True, True, True, True, False, True, True, True]
    relative = list(house.imports_of("param_features.adapters.stand_in", path, "from .module import ModuleAdapter"))
    assert [each.module for each in relative] == ["param_features.adapters.module"]


def test_a_circle_is_found_whole(house):
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set(), "f": {"f"}}
    assert house.circles_in(graph) == [("a", "b", "c"), ("f",)]


def test_the_picture_is_of_these_imports(house):
    assert house.PICTURE.read_text() == house.drawing(), "run: python docs/rooms.py"
