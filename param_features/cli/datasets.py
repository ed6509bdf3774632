"""`--dataset`: texts from a file or from the Hugging Face hub, one at a time."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from param_features.errors import MissingExtraError, SourceError
from param_features.files.hub import local_path

SampleBy = Literal["line", "paragraph", "document"]


@dataclass(frozen=True)
class DataSource:
    """Which texts, and how to read them.

    Attributes:
        name: A file, or a name on the hub.
        text_field: Where a row's text is, in JSON objects and hub data sets.
        sample_by: What one text of a plain text file is: a line, what blank lines divide, or the whole file.
        split: Which split of a hub data set.
        subset: Which part of a hub data set that has several.
    """

    name: str
    text_field: str = "text"
    sample_by: SampleBy = "line"
    split: str = "train"
    subset: str | None = None


def check_source(source: DataSource) -> Path | None:
    """The data set's file; None for a name on the hub.

    Raises:
        SourceError: It reads like a path and is not there, or is a folder or a file of another kind.
    """
    path = local_path(source.name)
    if path is not None and (path.is_dir() or path.suffix not in _READERS):
        kind = "a folder" if path.is_dir() else f"a file of kind {path.suffix!r}"
        raise SourceError(
            f"--dataset {path} is {kind}. Files are read as text (.txt, .text, .md or no ending), .jsonl or .json; for "
            "another form, write one of these."
        )
    return path


def read_texts(source: DataSource) -> Iterator[str]:
    """Read every text that is not blank, in order.

    Raises:
        SourceError: Nothing is there, or it is not of a form that can be read.
        MissingExtraError: A hub data set is asked for, and `datasets` is not installed.
    """
    path = check_source(source)
    return (text for text in (_from_hub(source) if path is None else _from_file(path, source)) if text.strip())


def _from_file(path: Path, source: DataSource) -> Iterator[str]:
    try:
        yield from _READERS[path.suffix](path, source)
    except UnicodeDecodeError as error:
        raise SourceError(f"--dataset {path} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _text_file(path: Path, source: DataSource) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        if source.sample_by == "line":
            yield from (line.rstrip("\n") for line in file)
        elif source.sample_by == "paragraph":
            yield from re.split(r"\n(?:[ \t]*\n)+", file.read())
        else:
            yield file.read()


def _json_lines(path: Path, source: DataSource) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                place = f"line {number} of {path}"
                yield _text_of(_parsed(line, place), source, place)


def _json_list(path: Path, source: DataSource) -> Iterator[str]:
    rows = _parsed(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list):
        raise SourceError(
            f"{path} holds a JSON {type(rows).__name__}, not a list. Give a list of strings, or of objects with a field "
            f"{source.text_field!r}; one object a line goes into a .jsonl file."
        )
    for number, row in enumerate(rows):
        yield _text_of(row, source, f"entry {number} of {path}")


_READERS: dict[str, Callable[[Path, DataSource], Iterator[str]]] = {
    "": _text_file,
    ".txt": _text_file,
    ".text": _text_file,
    ".md": _text_file,
    ".jsonl": _json_lines,
    ".json": _json_list,
}
"""How each kind of file is read, by its ending."""


def _from_hub(source: DataSource) -> Iterator[str]:
    """Texts of a hub data set as they arrive: no more is downloaded than is read.

    Raises:
        MissingExtraError: `datasets` is not installed.
        SourceError: The hub does not give the data set.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise MissingExtraError(
            f"--dataset {source.name} is no file here, and the hub needs datasets, whose import failed: {error}. Run: pip "
            'install "param_features[hf]", or give a file.'
        ) from error
    place = f"the hub's data set {source.name!r}"
    try:
        rows: Iterable[Any] = load_dataset(source.name, source.subset, split=source.split, streaming=True)
        for row in rows:
            yield _text_of(row, source, f"a row of {place}")
    except SourceError:
        raise
    except (OSError, ValueError) as error:
        raise SourceError(f"No texts from {place}: {error} Check --dataset, --subset and --split.") from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # integers of thousands of digits are a ValueError of another kind
        raise SourceError(f"{place} is not JSON: {error}. Write each text as a JSON string or object.") from error


def _text_of(row: Any, source: DataSource, place: str) -> str:
    """A row's text: the row itself, or its field.

    Raises:
        SourceError: There is no such field, or it holds no string.
    """
    if isinstance(row, dict) and source.text_field not in row:
        fields = ", ".join(map(repr, list(row)[:20])) or "none"
        raise SourceError(f"{place} has no field {source.text_field!r}; its fields: {fields}. Choose with --text-field.")
    text = row[source.text_field] if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise SourceError(f"{place} holds {text!r:.60} where a text is expected. Give strings, or choose with --text-field.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"{place} holds half of a surrogate pair ({error}), which no tokenizer reads. Mend it.") from error
    return text
