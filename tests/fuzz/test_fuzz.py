"""Whatever bytes a file holds, reading it gives an object or an error by name, soon and in little memory."""

import json
import random
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import command_line
from tests.fuzz.mutate import joined, parted
from tests.fuzz.readers import READERS

pytestmark = pytest.mark.slow

N_INPUTS = {"store": 60, "compressed store": 60}
"""Of each reader; `python -m benchmarks.fuzz` tries twenty thousand."""

MOST_KIB = 400 * 1024
"""By which the process may grow."""

SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}


@pytest.mark.parametrize("name", READERS)
def test_hostile_files_are_read_or_refused_by_name(name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = set()

    @settings(max_examples=N_INPUTS.get(name, 120), **SETTINGS)
    @given(seed=st.integers(0, 2**32))
    def check(seed):
        outcomes.add(READERS[name].outcome(READERS[name].input(random.Random(seed))))

    check()
    assert len(outcomes) > 1, f"every input was {outcomes}: the changes are too coarse or too fine to say anything"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=25, **SETTINGS)
@given(data=st.binary(max_size=200))
def test_random_bytes_are_read_or_refused_by_name(name, data):
    for file in READERS[name].files:
        one = {file: data} if name in ("data set", "weights") else {**READERS[name].files, file: data}
        READERS[name].outcome(one)


@pytest.mark.parametrize("name", READERS)
def test_whole_files_are_read(name):
    reader = READERS[name]
    if name == "data set":
        assert {reader.outcome({file: data}) for file, data in reader.files.items()} == {"read"}
    else:
        assert reader.outcome(reader.files) == "read"
        assert reader.outcome(reader.restamp(dict(reader.files))) == "read"


@settings(max_examples=30, **SETTINGS)
@given(seed=st.integers(0, 2**32))
def test_command_lines_end_with_a_line_and_a_status(seed, tmp_path_factory, monkeypatch):
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("line")
    command_line.folder(folder, rng)
    monkeypatch.chdir(folder)
    command_line.outcome(command_line.arguments(rng))


def changed_record(name: str, file: str, change) -> dict:
    """A reader's whole files with one change of their JSON."""
    files = dict(READERS[name].files)
    record = json.loads(files[file])
    change(record)
    return READERS[name].restamp(files | {file: json.dumps(record).encode()})


CONFIG, MANIFEST = ("features", "config.json"), ("manifest", "manifest.json")


def changed_metrics(**values) -> dict:
    return changed_record(*CONFIG, lambda record: record["metrics"].update(values))


def a_long_dtype() -> dict:
    return changed_record(*MANIFEST, lambda record: record["recipe"].update(dtype="x" * 30_000))


def a_mask_of_three_axes() -> dict:
    files = dict(READERS["tied features"].files)
    header, rest = parted(files["features.safetensors"])
    header["examples/mask"]["shape"] = [1, *header["examples/mask"]["shape"]]
    return READERS["tied features"].restamp(files | {"features.safetensors": joined(header, rest)})


def two_huge_effects(circuit: dict) -> None:
    circuit["nodes"][0]["effects"] = [1e308, -1e308, 1e308, 1e308]


FOUND = {
    "a count that is null": ("features", changed_metrics(n_features=None), "StoreError"),
    "no main metric": ("features", changed_record(*CONFIG, lambda it: it["metrics"].pop("l0")), "StoreError"),
    "a control of 0": ("features", changed_metrics(control_pca=0, reconstruction_error=None), "read"),
    "a mask of three axes": ("tied features", a_mask_of_three_axes(), "StoreError"),
    "huge effects": ("circuit", changed_record("circuit", "circuit.json", two_huge_effects), "read"),
    "a dtype of many letters": ("manifest", a_long_dtype(), "StoreError"),
    "deep lists": ("data set", {"a.json": b"[" * 100_000}, "SourceError"),
    "long integers": ("data set", {"a.jsonl": b"9" * 5000}, "SourceError"),
    "half a pair": ("data set", {"a.json": b'["\\ud800"]'}, "SourceError"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
def test_what_once_broke_a_reader(case):
    name, files, outcome = FOUND[case]
    assert READERS[name].outcome(files) == outcome
