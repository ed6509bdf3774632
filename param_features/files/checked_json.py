"""JSON from files, read strictly: every record of this library has a format, a version and a checksum of its own."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from param_features.files.disk import Origin, size_text

MOST_BYTES = 2**26
"""How many bytes one record has at most."""

_MOST_DEPTH = 64
_MOST_INTEGER = 2**63


@dataclass(frozen=True)
class Format:
    """A kind of record that this library writes as JSON and reads again.

    Attributes:
        name: The value of its `format`.
        what: What it describes, for messages: "saved features".
        versions: Those that can be read; the last one is written.
        sum_key: The entry that holds SHA-256 of the others, as JSON with sorted keys.
        unsummed: Entries that are left out of that.
    """

    name: str
    what: str
    versions: tuple[int, ...]
    sum_key: str
    unsummed: tuple[str, ...] = ()

    def stamped(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Complete a record as it is written: with format, version and checksum; numbers that are not finite become null."""
        head = {"format": self.name, "format_version": self.versions[-1], "library_version": library_version()}
        record = json.loads(json.dumps(_finite({**head, **body})))  # as it will be read
        return record | {self.sum_key: self._sum(record)}

    def read(self, data: bytes | str, origin: Origin, *, most: int = MOST_BYTES) -> dict[str, Any]:
        """Read a record and check its checksum, which is left out; what it says is the caller's business.

        Raises:
            StoreError: It is not JSON, of another format or version, or edited.
        """
        return self.checked(parse_json(data, origin, most=most), origin)

    def checked(self, record: Any, origin: Origin) -> dict[str, Any]:
        """Check what `parse_json` gave as `read` does, and return it.

        Raises:
            StoreError: It is of another format or version, or edited.
        """
        if not isinstance(record, dict) or record.get("format") != self.name:
            origin.refuse(f"does not describe {self.what}: its 'format' is not {self.name!r}")
        written_version = record.get("format_version")
        if isinstance(written_version, bool) or written_version not in self.versions:
            known = f"version{'s' * (len(self.versions) > 1)} {' and '.join(map(str, self.versions))}"
            origin.refuse(
                f"has format version {shown(written_version)}; this library reads {known}. "
                f"It was written by param_features {shown(record.get('library_version'))}: install that version"
            )
        if record.pop(self.sum_key, None) != self._sum(record):
            origin.refuse("does not match its own checksum: it was cut short or edited")
        return record

    def _sum(self, record: Mapping[str, Any]) -> str:
        summed = {name: value for name, value in record.items() if name not in self.unsummed}
        return hashlib.sha256(json.dumps(summed, sort_keys=True).encode()).hexdigest()


def parse_json(data: bytes | str, origin: Origin, *, most: int = MOST_BYTES) -> Any:
    """Read JSON of which every reader would understand the same.

    Raises:
        StoreError: It is not JSON; names a key twice; holds a number that is not finite or no 64-bit integer, or text that
            is not Unicode; nests deeper than 64 levels; or has more bytes than `most`.
    """
    if len(data) > most:
        origin.refuse(f"has {size_text(len(data))}, and records of its kind have at most {size_text(most)}")
    try:
        text = data if isinstance(data, str) else data.decode()
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
        _check(value)
    except (ValueError, RecursionError) as error:  # bytes that are no text and integers of many digits are ValueErrors too
        origin.refuse(f"is not JSON ({error}): it was cut short or edited", error)
    return value


def shown(value: Any, most: int = 80) -> str:
    """Shorten a value to what a message shows: a file may hold anything."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}…"


def library_version() -> str:
    """This library's version, "unknown" when it runs uninstalled."""
    try:
        return version("param_features")
    except PackageNotFoundError:
        return "unknown"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {shown(next(name for name in names if names.count(name) > 1))} twice")
    return entries


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}, which is no finite number")


def _check(parsed: Any) -> None:
    """Refuse what the parser lets through, level by level."""
    level = [parsed]
    for _ in range(_MOST_DEPTH):
        inner = []
        for value in level:
            if isinstance(value, dict):
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            else:
                _check_leaf(value)
        if not inner:
            return
        level = inner
    raise ValueError(f"it nests deeper than {_MOST_DEPTH} levels")


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        value.encode()  # half of a surrogate pair is text to Python alone
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it holds a number beyond 64-bit floats")
    elif isinstance(value, int) and not -_MOST_INTEGER <= value < _MOST_INTEGER:
        raise ValueError("it holds an integer beyond 64 bits")


def _finite(value: Any) -> Any:
    """Replace numbers that JSON cannot hold by None, and tuples by lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
