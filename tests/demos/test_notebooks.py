"""The demo notebooks, executed from top to bottom with small settings; a cell that fails fails the test."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")

DEMOS = Path(__file__).resolve().parents[2] / "demos"
NOTEBOOKS = sorted(DEMOS.glob("*.ipynb"))


def read(path: Path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    names = {"01_first_features", "02_next_to_an_sae", "03_your_own_module", "04_through_training", "05_components"}
    assert {path.stem for path in NOTEBOOKS} >= names


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PARAM_FEATURES_DEMO", "quick")
    client = nbclient.NotebookClient(
        read(path), timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: a browser's loop may run in this one
        done = pool.submit(asyncio.run, client.async_execute()).result()
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed_was_run_from_top_to_bottom_with_full_settings(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert path.stat().st_size < 200_000, "the script of the views is not to be committed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_numbers_in_the_text_are_asserted_and_the_small_settings_are_named(path):
    cells = read(path).cells
    assert "PARAM_FEATURES_DEMO=quick" in cells[0].source
    assert sum("assert " in cell.source for cell in cells if cell.cell_type == "code") >= 3
