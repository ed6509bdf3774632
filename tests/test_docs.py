"""Every Python block of the documentation runs as it stands."""

import linecache
import re
from pathlib import Path

import pytest

from param_features.gradients.rules import registry as rules
from param_features.params import registry as adapters
from tests.saes import sae_library

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LONG = ("docs/concepts/trust.md:0", "docs/measurements/results.md:0")
"""Blocks of long fits, whose calls other blocks make too."""
BLOCKS = [
    (f"{path.relative_to(ROOT)}:{number}", block)
    for path in sorted((ROOT / "docs").glob("**/*.md"))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]


def test_the_documentation_holds_blocks():
    assert len(BLOCKS) >= 2
    assert set(LONG) < {place for place, _ in BLOCKS}


@pytest.mark.parametrize(
    ("place", "block"),
    [pytest.param(*each, id=each[0], marks=[pytest.mark.release] if each[0] in LONG else []) for each in BLOCKS],
)
def test_block_runs(place, block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # blocks write files
    if "train_sae" in block:
        sae_library()
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    monkeypatch.setattr(rules, "_RULES", dict(rules._RULES))
    lines = block.splitlines(keepends=True)
    monkeypatch.setitem(
        linecache.cache, place, (len(block), None, lines, place)
    )  # nnsight reads the source of a `with` block
    exec(compile(block, place, "exec"), {"__name__": "documentation"})
