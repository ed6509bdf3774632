"""The bench: its arithmetic by hand, its command on real toys, and a case that misses its aim and says so."""

import json
import re

import pytest

from benchmarks import toys
from benchmarks.bench.__main__ import main
from benchmarks.bench.suite import Case
from benchmarks.bench.table import Row, run_case, to_text

TINY = {"n_steps": 300, "n_inputs": 1000}


def test_the_worst_seed_is_the_low_one_of_scores_and_the_high_one_of_errors_and_controls():
    values = (0.5, 0.1, 0.9)
    assert (Row("a", "mmcs", values).median, Row("a", "mmcs", values).worst) == (0.5, 0.1)
    for number in ("error", "dead", "training seconds", "shuffled", "covered_random"):
        assert Row("a", number, values).worst == 0.9


@pytest.mark.release
def test_an_aim_is_counted_over_seeds_and_can_be_missed():
    case = Case("tms", toys.superposition, TINY, {"mmcs": 0.5, "covered": 6}, {"error": -1.0}, {"steps": 200})
    rows = {row.number: row for row in run_case(case, range(2), is_quick=True)}
    assert (rows["mmcs"].aim, rows["mmcs"].n_met) == (">= 0.5", 2)
    assert (rows["covered"].aim, rows["covered"].n_met) == (">= 6", 0)
    assert (rows["error"].aim, rows["error"].n_met) == ("<= -1", 0)
    assert rows["random"].n_met is None
    assert "0 of 2" in to_text(list(rows.values()))
    assert rows["mmcs"].values[0] != rows["mmcs"].values[1]


@pytest.mark.release
def test_the_quick_command_runs_toys_and_saves_what_it_prints(tmp_path, capsys):
    """Toys that train in seconds; the others are run by their own tests."""
    names = ("tms 5-2", "groups 5x5")
    with pytest.raises(SystemExit, match="0"):
        main(["--quick", "--seeds", "1", "--out", str(tmp_path), *(word for name in names for word in ("--only", name))])
    printed = capsys.readouterr().out
    saved = json.loads((tmp_path / "values.json").read_text())
    assert {row["case"] for row in saved} == set(names)
    for line in (tmp_path / "table.md").read_text().splitlines():
        assert line in printed
    numbers = {(row["case"], row["number"]): row["values"][0] for row in saved}
    for case in names:
        assert numbers[case, "mmcs"] > 0.9 > numbers[case, "shuffled"]
        assert numbers[case, "random"] < 0.7


@pytest.mark.release
def test_the_command_prints_a_table_and_writes_both_files(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--seeds", "1", "--quick", "--only", "xor", "--out", str(tmp_path)])
    assert "| xor | mmcs" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"table.md", "values.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing"], "There is no toy 'nothing'. Toys: tms 5-2,"),
        (["--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_errors_are_one_line_with_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    printed = capsys.readouterr()
    assert (ended.value.code, printed.out) == (2, "")
    assert re.fullmatch(f"Error: .*{message}.*\n", printed.err)
    assert list(tmp_path.iterdir()) == []


def test_arguments_out_of_range_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--seeds", "0"])
    assert "Invalid value for '--seeds': Input should be greater than or equal to 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--only", "sqares"])
    assert "There is no toy 'sqares'. Toys: tms 5-2, tms 5-2 tied," in (refused := capsys.readouterr().err)
    assert "nearest: 'squares'" in refused
