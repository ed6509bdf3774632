"""Every reader of files, with whole files to start from, and what may come of any others: an object, or an error by name."""

import hashlib
import io
import json
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from safetensors.torch import load

import param_features as pf
from param_features.changes.weights import read_state
from param_features.circuits.export import FORMAT as CIRCUIT
from param_features.cli.datasets import DataSource, read_texts
from param_features.files.bundle import FORMAT as FEATURES
from param_features.files.checked_json import Format
from param_features.fit.checkpoint import FORMAT as CHECKPOINT
from param_features.fit.checkpoint import _tensors_sum, read_checkpoint
from param_features.gradients.disk.manifest import FORMAT as MANIFEST
from param_features.gradients.disk.manifest import Manifest
from tests.fuzz.mutate import Files, as_text, changed, changed_bytes, changed_json, joined, parted

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"
SECONDS = 30
"""An input that takes longer counts as a hang."""


class Hang(Exception):
    """A reader took too long."""


@dataclass(frozen=True)
class Reader:
    """A reader.

    Attributes:
        files: Whole ones, by name.
        read: Reads a folder that holds them, and uses what it got a little.
        restamp: Makes their checksums right again, as far as that goes.
    """

    files: Files
    read: Callable[[Path], Any]
    restamp: Callable[[Files], Files] = lambda files: files

    def input(self, rng: random.Random) -> Files:
        """Changed files."""
        return changed(self.files, rng, self.restamp)

    def outcome(self, files: Files) -> str:
        """`"read"`, or the name of the error that refused the files; any other exception goes on."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file, data in files.items():
                (folder / file).write_bytes(data)
            return outcome_of(lambda: self.read(folder))


def outcome_of(call: Callable[[], Any]) -> str:
    """As `Reader.outcome`."""
    try:
        with within(SECONDS):
            call()
    except pf.ParamFeaturesError as error:
        assert str(error).strip(), "an error says nothing"
        assert len(str(error)) < 20_000, "an error repeats all that it was given"
        return type(error).__name__
    return "read"


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `Hang` where a block takes longer."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def files_of(folder: Path) -> Files:
    """What a folder holds."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != ".lock"}


def stamped(format: Format, record: Any) -> bytes:
    """A record with its checksum made right; others as they are."""
    if not isinstance(record, dict):
        return as_text(record)
    summed = {key: value for key, value in record.items() if key not in (format.sum_key, *format.unsummed)}
    return as_text({**record, format.sum_key: hashlib.sha256(json.dumps(summed, sort_keys=True).encode()).hexdigest()})


def _features(files: Files) -> Files:
    with suppress(ValueError, RecursionError, TypeError, KeyError):
        record = json.loads(files["config.json"])
        record["tensors_sha256"] = hashlib.sha256(files["features.safetensors"]).hexdigest()
        files |= {"config.json": stamped(FEATURES, record)}
    return files


def _store(files: Files) -> Files:
    with suppress(ValueError, RecursionError, TypeError, KeyError, AttributeError):
        record = json.loads(files["manifest.json"])
        record["inputs_sha256"] = hashlib.sha256(files["inputs.safetensors"]).hexdigest()
        for name, shard in record["whole"].items():
            shard |= {"sha256": hashlib.sha256(files[name]).hexdigest(), "n_bytes": len(files[name])}
        files |= {"manifest.json": stamped(MANIFEST, record)}
    with suppress(ValueError, RecursionError, TypeError):
        files |= {"manifest.json": stamped(MANIFEST, json.loads(files["manifest.json"]))}
    return files


def _checkpoint(files: Files) -> Files:
    name = "fit.safetensors"
    try:
        header, rest = parted(files[name])
        record = json.loads(header["__metadata__"]["record"])
        with suppress(Exception):  # whatever safetensors' own reader says of a damaged file
            record["tensors_sha256"] = _tensors_sum(load(files[name]))
        header["__metadata__"]["record"] = stamped(CHECKPOINT, record).decode()
    except (ValueError, RecursionError, TypeError, KeyError):
        return files
    return {name: joined(header, rest)}


def _circuit(files: Files) -> Files:
    with suppress(ValueError, RecursionError):
        return {name: stamped(CIRCUIT, json.loads(data)) for name, data in files.items()}
    return files


class _CheckpointReader(Reader):
    """Changes the record inside the header as well."""

    def input(self, rng: random.Random) -> Files:
        files = dict(self.files)
        if rng.random() < 0.5:
            header, rest = parted(files["fit.safetensors"])
            record = changed_json(json.loads(header["__metadata__"]["record"]), rng)
            header["__metadata__"]["record"] = as_text(record).decode()
            return self.restamp({"fit.safetensors": joined(header, rest)})
        return changed(files, rng, self.restamp)


class _BytesReader(Reader):
    """Changes bytes alone."""

    def input(self, rng: random.Random) -> Files:
        name = rng.choice(sorted(self.files))
        data = self.files[name]
        for _ in range(rng.randrange(1, 3)):
            data = changed_bytes(data, rng)
        return {name: data}


def _use_features(folder: Path) -> None:
    found = pf.load(folder)
    assert repr(found) and found.direction(0)
    if found.examples is not None:
        assert len(found.examples.token_rows) in (0, len(found.examples))


def _use_store(folder: Path) -> None:
    store = pf.FactorStore.open(folder)
    assert repr(store) and store.settings and store.summary and store.metrics is not None
    for gradients in (store.train, store.held_out):
        assert len(gradients.square_norm()) == gradients.n_samples == len(gradients.places[0])


def _use_manifest(folder: Path) -> None:
    found = Manifest.read(folder)
    assert found.n_samples("train") > 0 and found.row_bytes("train") > 0 and found.damaged(folder) is not None
    for place in range(len(found.states)):
        assert len(found.state(place))


def _use_circuit(folder: Path) -> None:
    found = pf.circuits.Circuit.load(folder / "circuit.json")
    assert repr(found) and found.table() is not None and str(found.view())


def _use_texts(folder: Path) -> None:
    (path,) = folder.iterdir()
    for sample_by in ("line", "paragraph", "document"):
        assert all(isinstance(text, str) for text in islice(read_texts(DataSource(str(path), sample_by=sample_by)), 50))


def _use_state(folder: Path) -> None:
    (path,) = folder.iterdir()
    assert isinstance(read_state(path), dict)


_TEXTS = {
    "a.jsonl": b'{"text": "one"}\n{"text": "two"}\n\n"three"\n',
    "a.json": b'["one", {"text": "two"}]',
    "a.txt": "one\n\ntwo\r\n  \nthré\n".encode(),
}
_circuit_file = {"circuit.json": (GOLDEN / "circuit.json").read_bytes()}
_manifest_file = {"manifest.json": (GOLDEN / "store" / "manifest.json").read_bytes()}
_fit_file = {"fit.safetensors": (GOLDEN / "checkpoint" / "fit.safetensors").read_bytes()}

READERS: dict[str, Reader] = {
    "features": Reader(files_of(GOLDEN / "untied"), _use_features, _features),
    "tied features": Reader(files_of(GOLDEN / "tied"), _use_features, _features),
    "store": Reader(files_of(GOLDEN / "store"), _use_store, _store),
    "compressed store": Reader(files_of(GOLDEN / "compressed"), _use_store, _store),
    "manifest": Reader(_manifest_file, _use_manifest, _store),
    "checkpoint": _CheckpointReader(_fit_file, lambda folder: read_checkpoint(folder / "fit.safetensors"), _checkpoint),
    "circuit": Reader(_circuit_file, _use_circuit, _circuit),
    "data set": _BytesReader(_TEXTS, _use_texts),
    "weights": _BytesReader({"w.safetensors": (GOLDEN / "images.safetensors").read_bytes()}, _use_state),
}


@contextmanager
def quietly() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """What a block prints, and what it says on the error stream."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err
