"""The rows in the package: which there are, how calls line up, and what is refused."""

import random
import subprocess
import sys

import pytest
import torch

from param_features import demo
from param_features.demo.rows import ROWS_FILE, read_rows
from param_features.errors import SettingError

TABLES = [demo.tokens, demo.rules, demo.surprisal, demo.entropy]


def test_same_seed_gives_the_same_stories_and_other_seeds_others() -> None:
    assert demo.stories(20, seed=3) == demo.stories(20, seed=3)
    assert not set(demo.stories(20, seed=3)) & set(demo.stories(20, seed=4))
    assert torch.equal(demo.tokens(5, seed=1), demo.tokens(8, seed=1)[:5])
    assert torch.equal(demo.tokens(5, n_ctx=40), demo.tokens(5, n_ctx=90)[:, :40])


def test_tables_line_up_with_tokens() -> None:
    shape = demo.tokens(6, n_ctx=30, seed=2).shape
    assert shape == (6, 30)
    assert demo.surprisal(6, n_ctx=30, seed=2).shape == demo.entropy(6, n_ctx=30, seed=2).shape == shape
    assert all(mask.shape == shape for mask in demo.rules(6, n_ctx=30, seed=2).values())
    assert list(demo.rules(1)) == list(demo.RULES)
    assert demo.tokens(0).shape == demo.entropy(0).shape == demo.rules(0)["the-end"].shape == (0, 64)


def test_a_caller_may_change_what_was_returned() -> None:
    before = demo.tokens(2), demo.surprisal(2), demo.rules(2)["the-end"]
    for table in (demo.tokens(2), demo.surprisal(2), demo.rules(2)["the-end"]):
        table.fill_(1)
    assert all(map(torch.equal, before, (demo.tokens(2), demo.surprisal(2), demo.rules(2)["the-end"])))


def test_global_generators_are_untouched() -> None:
    before, torch_before = random.getstate(), torch.random.get_rng_state()
    demo.tokens(3)
    demo.rules(3)
    assert random.getstate() == before
    assert torch.equal(torch.random.get_rng_state(), torch_before)


def test_the_file_is_small_and_has_the_rows_that_the_docstrings_state() -> None:
    assert ROWS_FILE.stat().st_size < 400_000
    assert read_rows().n_rows.tolist() == [4096, *[512] * 9]
    assert read_rows().tokens.shape == read_rows().kinds.shape == (4096 + 9 * 512, 96)
    assert len(read_rows().rules) == len(read_rows().surprisal) == len(read_rows().entropy) == 75
    assert len(demo.stories(4096)) == 4096
    assert demo.tokens(512, n_ctx=96, seed=9).shape == (512, 96)


@pytest.mark.parametrize(("arguments", "message"), [({"n": -1}, "n=-1 rows"), ({"n": 2, "n_ctx": 0}, "n_ctx=0")])
@pytest.mark.parametrize("function", TABLES)
def test_impossible_sizes_are_refused(function, arguments: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        function(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 4097}, r"4096 rows of seed 0.*benchmarks.demo_data rows.safetensors --n 4097 --n-ctx 64 --seed 0"),
        (
            {"n": 513, "seed": 1},
            r"n=513 .* seed=1 .* 512 of each of the seeds 1 to 9, of 96 .*--n 513 --n-ctx 64 --seed 1",
        ),
        ({"n": 1, "seed": 10}, r"seed=10 .*--seed 10"),
        ({"n": 1, "seed": -1}, r"seed=-1 .*--seed -1"),
        ({"n": 1, "n_ctx": 97}, r"n_ctx=97 .*--n-ctx 97"),
    ],
)
@pytest.mark.parametrize("function", TABLES)
def test_rows_that_are_not_in_the_package_are_refused(function, arguments: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        function(**arguments)


def test_stories_that_are_not_in_the_package_are_refused() -> None:
    with pytest.raises(SettingError, match="seed=10 are not in the package"):
        demo.stories(1, seed=10)


def test_importing_the_demo_imports_no_optional_library() -> None:
    code = (
        "import sys; import param_features.demo as demo; demo.tokens(1); "
        "print({'transformer_lens', 'transformers', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
