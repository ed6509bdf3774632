"""What a file's JSON must say, field by field: each is checked as it is taken, and nothing else may be there."""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from param_features.files.checked_json import shown
from param_features.files.disk import Origin

MOST_COUNT = 2**48
"""The largest of all counts in files; products of a few stay within what a message and a float can hold."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
MOST_TEXT = 1000
_TEXT = "a text of at most {:,} characters that can be printed"


@dataclass(frozen=True)
class Part:
    """A JSON object of a file, whose fields are checked as they are taken.

    Attributes:
        body: Its fields.
        name: Where it lies in the file, empty for the whole; a prefix of its fields' names.
        origin: For messages.
    """

    body: Mapping[str, Any]
    name: str
    origin: Origin

    def check_fields(self, needed: Collection[str], optional: Collection[str] = ()) -> None:
        """Refuse a part that lacks a field or has one that nobody knows.

        Raises:
            StoreError: Names them.
        """
        missing = [name for name in needed if name not in self.body]
        unknown = [shown(name) for name in self.body if name not in needed and name not in optional]
        if missing or unknown:
            self.origin.refuse(
                f"{f'in {self.name} ' if self.name else ''}lacks {', '.join(map(repr, missing)) or 'nothing'} and has the "
                f"unknown {', '.join(unknown[:8]) or 'nothing'}; fields: {', '.join([*needed, *optional])}"
            )

    def refuse(self, key: str, accepted: str) -> Any:
        """Refuse the value of a field.

        Raises:
            StoreError: Says what it is and what would be accepted.
        """
        name = f"{self.name}.{key}" if self.name else key
        self.origin.refuse(f"says {name} = {shown(self.body[key])}; accepted: {accepted}")

    def text(self, key: str) -> str:
        """Take a field that is a short text."""
        value = self.body[key]
        return value if is_text(value) else self.refuse(key, _TEXT.format(MOST_TEXT))

    def count(self, key: str, least: int = 0, most: int = MOST_COUNT) -> int:
        """Take a field that is a whole number."""
        value = self.body[key]
        return value if is_count(value, least, most) else self.refuse(key, f"a whole number from {least} to {most}")

    def number(self, key: str, least: float = -math.inf) -> float:
        """Take a field that is a finite number."""
        value = self.body[key]
        known = "" if least == -math.inf else f" from {least:g}"
        return value if is_number(value) and value >= least else self.refuse(key, f"a finite number{known}")

    def flag(self, key: str) -> bool:
        """Take a field that is true or false."""
        value = self.body[key]
        return value if isinstance(value, bool) else self.refuse(key, "true or false")

    def choice(self, key: str, accepted: Collection[str]) -> str:
        """Take a field that is one of the accepted texts."""
        value = self.body[key]
        is_known = isinstance(value, str) and value in accepted
        return value if is_known else self.refuse(key, ", ".join(map(repr, accepted)))

    def sha256(self, key: str) -> str:
        """Take a field that is a SHA-256 in hexadecimal."""
        value = self.body[key]
        is_sum = isinstance(value, str) and _SHA256.fullmatch(value)
        return value if is_sum else self.refuse(key, "a SHA-256, 64 digits of 0-9 and a-f")

    def counts(self, key: str, least: int = 0) -> tuple[int, ...]:
        """Take a field that is a list of whole numbers."""
        value = self.body[key]
        is_good = isinstance(value, list) and all(is_count(entry, least) for entry in value)
        return tuple(value) if is_good else self.refuse(key, f"a list of whole numbers from {least}")

    def texts(self, key: str, most: int = MOST_TEXT) -> tuple[str, ...]:
        """Take a field that is a list of short texts."""
        value = self.body[key]
        is_good = isinstance(value, list) and all(is_text(entry, most) for entry in value)
        return tuple(value) if is_good else self.refuse(key, f"a list, each {_TEXT.format(most)}")

    def part(self, key: str) -> "Part":
        """Take a field that is an object."""
        value = self.body[key]
        name = f"{self.name}.{key}" if self.name else key
        return Part(value, name, self.origin) if isinstance(value, dict) else self.refuse(key, "an object")

    def parts(self, key: str) -> "dict[str, Part]":
        """Take a field that is an object of objects; they come by their names, in order."""
        inner = self.part(key).named()
        return {name: Part({name: value}, inner.name, self.origin).part(name) for name, value in inner.body.items()}

    def named(self) -> "Part":
        """Return the part itself, where the names of its fields can be printed.

        Raises:
            StoreError: A name is long, or holds what would command a terminal.
        """
        unfit = next((name for name in self.body if not is_text(name)), None)
        if unfit is not None:
            self.origin.refuse(f"has in {self.name} the name {shown(unfit)}; accepted: {_TEXT.format(MOST_TEXT)}")
        return self

    def listed(self, key: str) -> "list[Part]":
        """Take a field that is a list of objects."""
        value = self.body[key]
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self.refuse(key, "a list of objects")
        return [Part(entry, f"{self.name}{key}[{place}]", self.origin) for place, entry in enumerate(value)]

    def is_null(self, key: str) -> bool:
        """Whether the field is null or not there."""
        return self.body.get(key) is None


def is_text(value: Any, most: int = MOST_TEXT) -> bool:
    """Whether it is a text of bearable length, without ends of lines or characters that would command a terminal."""
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def is_count(value: Any, least: int = 0, most: int = MOST_COUNT) -> bool:
    """Whether it is a whole number in a range; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether it is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
