"""The rows in the package are those that the maker makes, and more can be made."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import demo_data
from benchmarks.demo_data.shipped import make_rows
from param_features import demo
from param_features.demo.rows import read_rows


def test_the_shipped_file_is_what_the_maker_makes() -> None:
    made, shipped = make_rows()._asdict(), read_rows()._asdict()
    for name, table in made.items():
        assert table.dtype == shipped[name].dtype, name
        assert torch.equal(table, shipped[name]), name


@pytest.mark.parametrize(("n", "n_ctx", "seed"), [(30, 64, 0), (20, 96, 9), (12, 7, 4), (0, 64, 1)])
def test_both_read_the_same_tables(n: int, n_ctx: int, seed: int) -> None:
    for name in ("tokens", "surprisal", "entropy"):
        made = getattr(demo_data, name)(n, n_ctx=n_ctx, seed=seed)
        shipped = getattr(demo, name)(n, n_ctx=n_ctx, seed=seed)
        assert made.dtype == shipped.dtype
        assert torch.equal(made, shipped)
    made, shipped = demo_data.rules(n, n_ctx=n_ctx, seed=seed), demo.rules(n, n_ctx=n_ctx, seed=seed)
    assert list(made) == list(shipped)
    assert all(torch.equal(mask, shipped[name]) for name, mask in made.items())
    assert demo_data.stories(n, seed=seed) == demo.stories(n, seed=seed)


def test_the_command_makes_rows_that_the_package_has_not(tmp_path) -> None:
    path = tmp_path / "rows.safetensors"
    call = [sys.executable, "-m", "benchmarks.demo_data", path, "--n", "3", "--n-ctx", "100", "--seed", "11"]
    subprocess.run(call, check=True, capture_output=True)
    tables = load_file(path)
    assert torch.equal(tables["tokens"], demo_data.tokens(3, n_ctx=100, seed=11))
    assert torch.equal(tables["entropy"], demo_data.entropy(3, n_ctx=100, seed=11))
    assert {name for name in tables if name.startswith("rules.")} == {f"rules.{name}" for name in demo.RULES}
