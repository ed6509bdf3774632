"""What the documentation site promises: every public name has its entry, every named function, test and benchmark exists."""

import ast
import importlib.util
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType

import pytest

import param_features as pf

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("**/*.md"))
MODULES = {"adapters", "circuits", "demo", "development", "errors", "plot", "sae", "toys"}
LIBRARY = sorted([*(ROOT / "param_features").glob("**/*.py"), *(ROOT / "adapters").glob("*.py")])
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "demos").glob("*.ipynb"))]
_CODE = re.compile(r"`([^`]+)`")
_WRITTEN = re.compile(r"(?<![\w.\"'/-])pf\.(\w+(?:\.\w+)?)")


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def names() -> ModuleType:
    return loaded(DOCS / "hooks" / "names.py")


@cache
def directives() -> list[str]:
    return [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def public_names() -> set[str]:
    """What users write after `pf.`: names of the package, and of the modules among them."""
    public = set(pf.__all__) - MODULES
    for module in MODULES - {"errors"}:
        public |= {f"{module}.{name}" for name in getattr(pf, module).__all__ if name not in pf.__all__ or module == "plot"}
    kinds = [
        name for name, kind in vars(pf.errors).items() if inspect.isclass(kind) and issubclass(kind, pf.ParamFeaturesError)
    ]
    return public | {f"errors.{name}" for name in kinds if name != "ParamFeaturesError"}


def taken_by_other_rooms() -> set[str]:
    """Names after `pf.` that a module gives to the library's own files."""
    modules = {"plots" if module == "plot" else module: module for module in MODULES}
    imports = [
        node for path in LIBRARY for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)
    ]
    return {
        f"{modules[room]}.{alias.name}"
        for node in imports
        for room in modules
        if node.module == f"param_features.{room}"
        for alias in node.names
    }


def test_every_module_in_the_package_has_been_thought_of():
    assert {name for name in pf.__all__ if inspect.ismodule(getattr(pf, name))} == MODULES


def test_every_public_name_is_documented_once():
    """A room's names that only other rooms use need no entry."""
    documented = directives()
    undocumented = public_names() - {name.removeprefix("pf.") for name in documented}
    assert sorted(undocumented - taken_by_other_rooms()) == []
    assert len(documented) == len(set(documented))


def names_without_entry(path: Path) -> set[str]:
    """Names after `pf.` in a file's text that no page of the API has."""
    written = _WRITTEN.findall(path.read_text())
    names = {name if name.partition(".")[0] in MODULES else name.partition(".")[0] for name in written}
    return names - {name.removeprefix("pf.") for name in directives()} - MODULES


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_name_that_a_page_gives_has_an_entry(path):
    assert names_without_entry(path) == set()


def test_every_name_that_a_docstring_or_a_message_gives_has_an_entry():
    assert {str(path.relative_to(ROOT)): names for path in LIBRARY if (names := names_without_entry(path))} == {}


@pytest.mark.parametrize("name", directives())
def test_an_entry_is_of_the_object_that_has_its_name(name, names):
    module, _, leaf = name.rpartition(".")
    place = names.resolved(name.removeprefix("pf.")) if name.startswith("pf.") else names.resolved(leaf, module)
    owner, _, attribute = place.rpartition(".")
    shown = resolve_name(f"{owner}:{attribute}")
    public = resolve_name(f"param_features:{name[3:]}") if name.startswith("pf.") else resolve_name(f"{module}:{leaf}")
    assert inspect.unwrap(public) is inspect.unwrap(shown)


def test_names_in_the_text_become_links_and_code_stays(names):
    code = "```python\n# `pf.decompose`\n```\n# `pf.decompose`\n`pf.nothing`, [`pf.decompose`](x.md)"
    linked = "[`pf.decompose(model)`][param_features.run.decomposition.decompose]"
    assert names.linked(f"Use `pf.decompose(model)`.\n{code}") == f"Use {linked}.\n{code}"


def test_the_command_lines_page_is_the_programs():
    page = loaded(DOCS / "command_line.py")
    assert page.PAGE.read_text() == page.command_line_page(), "run: python docs/command_line.py"


def sources() -> list[tuple[str, ...]]:
    """Function and test cells of the tables."""
    lines = (DOCS / "reference" / "sources.md").read_text().splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("|").split(" | ")) for line in lines if line.startswith("| ")]
    return [row[-2:] for row in rows if len(row) == 4 and "`" in row[-1]]


def test_sources_are_many():
    assert len(sources()) > 40


@pytest.mark.parametrize(("functions", "tests"), sources(), ids=[functions for functions, _ in sources()])
def test_functions_and_tests_of_the_sources_exist(functions, tests):
    for place in _CODE.findall(functions):
        module, _, name = place.rpartition(".")
        parent, _, last = module.rpartition(".")
        is_method = last[:1].isupper()
        owner = f"{parent}:{last}.{name}" if is_method else f"{module}:{name}"
        assert callable(resolve_name(owner if owner.startswith("benchmarks.") else f"param_features.{owner}"))
    for place in _CODE.findall(tests):
        path, _, name = place.partition("::")
        text = (ROOT / "tests" / path).read_text()
        assert f"def {name or 'test_'}" in text


def test_every_benchmark_is_on_the_page_of_measurements():
    page = (DOCS / "measurements" / "index.md").read_text()
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py"}
    assert scripts == set(re.findall(r"benchmarks/(\w+\.py)", page))


@pytest.mark.parametrize("path", [*PAGES, ROOT / "mkdocs.yml"], ids=lambda path: str(path.relative_to(ROOT)))
def test_no_page_names_a_folder_of_one_machine(path):
    assert not re.search(r"(?<![\w.])/(?:tmp|work|home|root|Users)/", path.read_text())


@pytest.mark.slow
def test_the_site_builds_and_asks_the_network_for_nothing(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text() for path in tmp_path.glob("**/*.html")}
    assert len(pages) > 40
    assert not [
        path for path, page in pages.items() if re.search(r"<(script|link|img|iframe)[^>]+(src|href)=.?https?:", page)
    ]
    assert not [path for path, page in pages.items() if str(ROOT) in page]
    assert not [path for path, page in pages.items() if "arithmatex" in page]


def test_formulas_become_mathml_and_code_does_not():
    pytest.importorskip("latex2mathml")
    page = loaded(DOCS / "hooks" / "mathematics.py").on_page_content(
        r'<span class="arithmatex">\(a &lt; b\)</span><div class="arithmatex">\[x^2\]</div><code>\(c\)</code>'
    )
    assert page.count("<math") == 2
    assert page.endswith(r"<code>\(c\)</code>")
    assert "<mo>&#x0003C;</mo>" in page or "<mo>&lt;</mo>" in page


def test_paragraphs_of_docstrings_keep_their_word():
    pytest.importorskip("griffe")
    sys.path.insert(0, str(DOCS / "hooks"))
    try:
        hook = loaded(DOCS / "hooks" / "docstrings.py")
    finally:
        sys.path.remove(str(DOCS / "hooks"))
    text = "Do it.\n\nSource: L3D, the first\n    part of it.\n\nNext."
    assert hook._PARAGRAPH.sub(hook._marked, text) == "Do it.\n\n**Source:** L3D, the first part of it.\n\nNext."


def test_a_notebooks_views_are_shown_without_their_scripts():
    notebooks = loaded(DOCS / "hooks" / "notebooks.py")
    for path in sorted((ROOT / "demos").glob("*.ipynb")):
        page, pictures = notebooks.notebook_page(path)
        assert page.startswith("# ")
        assert "<script" not in page
        assert all(name in page and content[1:4] == b"PNG" for name, content in pictures.items())
