"""Random command lines: what follows the program's name, with files of any content; heavy work behind them is left out."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn
from unittest import mock

from param_features import demo
from param_features.cli import models
from param_features.cli.app import app
from param_features.cli.running import run
from param_features.errors import MissingExtraError, SourceError
from tests.fuzz.mutate import TEXTS
from tests.fuzz.readers import READERS, SECONDS, quietly, within

COMMANDS = (
    "demo",
    "list-params",
    "harvest",
    "decompose",
    "report",
    "compare",
    "bench",
    "",
    "no-such",
    "--help",
    "--version",
)
OPTIONS = (
    "--model", "--library", "--device", "--dtype", "--dataset", "--text-field", "--sample-by", "--split", "--subset",
    "--n-ctx", "--n-rows", "--pack", "--params", "--n-features", "--l0", "--rank", "--n-samples", "--steps", "--seed",
    "--divergence", "--reference", "--format", "--method", "--selection", "--out", "--checkpoint-dir", "--force", "--report",
    "--quiet", "-q",
    "--store", "--sae", "--hook-name", "--shard-mib", "--quick", "--n-shown", "--only", "--seeds", "--nonsense", "--", "-h",
)  # fmt: skip
GIVEN = (
    "demo", "./demo", "nobody/", "a/b/c", "..", "cpu", "cuda:99", "meta", "x" * 300, "hf", "transformer-lens",
    "float32", "line",
    "0", "1", "-1", "2", "1e9", "nan", "inf", "1e400", "kl", "label", "l3d", "hessian", "cp", "blocks.*", "[", "\u2028",
    "\ud800",
    "a\0b", "</script>", "",
)  # fmt: skip
FILES = ("run", "a.txt", "a.json", "a.jsonl", "a.csv", "model", "missing")
HEAVY = (
    "param_features.decompose", "param_features.harvest", "param_features.compare",
    "benchmarks.bench.command.run_suite",
    "param_features.cli.decompose_command.load_both", "param_features.cli.viewing.load_rows",
    "param_features.cli.viewing.write_report",
)  # fmt: skip


class Done(SystemExit):
    """The command reached work that is left out."""


def arguments(rng: random.Random) -> list[str]:
    """What follows the program's name."""
    found = [rng.choice(COMMANDS)]
    if found[0] in ("report", "compare") and rng.random() < 0.9:
        found.append(rng.choice(FILES))
    must = ["--model"] if rng.random() < 0.8 else []
    for option in [*must, *rng.choices(OPTIONS, k=rng.randrange(5))]:
        found.append(option)
        if rng.random() < 0.85:
            found.append(rng.choice((*GIVEN, *FILES)))
    return found


def folder(place: Path, rng: random.Random) -> None:
    """Files of the names that arguments may say."""
    for name in ("a.txt", "a.json", "a.jsonl", "a.csv"):
        (place / name).write_bytes(rng.choice((*TEXTS, b'["a"]', b'{"text": "a"}\n')))
    for name, reader in (("run", READERS["tied features"]), ("model", READERS["features"])):
        (place / name).mkdir()
        for file, data in (reader.input(rng) if rng.random() < 0.5 else reader.files).items():
            (place / name / file).write_bytes(data)


@contextmanager
def light() -> Iterator[None]:
    """Without what costs minutes, or asks a network."""
    with ExitStack() as stack:
        for name in HEAVY:
            stack.enter_context(mock.patch(name, side_effect=Done(0)))
        stack.enter_context(mock.patch("param_features.cli.models._load_hf", _local_alone))
        stack.enter_context(mock.patch("param_features.cli.datasets._from_hub", _offline))
        yield


def _local_alone(place: str, source: models.ModelSource, *, is_local: bool) -> models.LoadedModel:
    return _load_hf(place, source, is_local=True) if is_local else _offline(place)


def _offline(what: object) -> NoReturn:
    raise SourceError(f"{what} is on the hub, which is not asked here. Give a folder.")


_load_hf = models._load_hf


@cache
def _warm() -> None:
    """Import what a model needs before the clock runs: that is seconds, once."""
    with suppress(MissingExtraError):
        demo.load_model()


def outcome(given: list[str]) -> str:
    """`"read"` for status 0, `"refused"` for 2 with one line that says why; any other end goes on as it is."""
    _warm()
    with quietly() as (_, err):
        try:
            with light(), within(SECONDS):
                run(app, given, "param-features")
        except SystemExit as ended:
            code = ended.code
    said = err.getvalue()
    assert code in (0, 2), f"status {code}"
    assert "Traceback" not in said
    if code == 2:
        lines = [line for line in said.splitlines() if line.strip()]
        assert len(lines) <= 1 or given[:1] == [""] or "Usage" in said, said
    return "read" if code == 0 else "refused"
