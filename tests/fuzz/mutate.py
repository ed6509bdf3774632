"""Files as somebody hostile would change them: JSON and tensors that are well formed and say anything, and damaged bytes."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

Files = dict[str, bytes]
"""What a folder holds, by name."""

VALUES = (
    None, True, False, 0, -1, 1, 2, 7, 2**31, 2**63, 2**63 - 1, 10**400, 0.5, -0.0, 1e308,
    "", "a", "..", "../x", "/etc/passwd", "C:\\x", "a\0b", "\ud800", "</script><script>window.pwned=1</script>", "{}", "[",
    "x" * 20_000, "F32", "BOOL", "kl", "auto", "train", "a b -> b a", "o i -> (o i)", "() -> () ()", "e" * 64,
    [], [0], [2**40], [2**40, 2**40, 2**40], [-1], [[]], [None], {}, {"a": 1},
)  # fmt: skip
"""Values that fit in some place of JSON and are wrong in most."""

TEXTS = (
    b"", b"{}", b"[]", b"null", b"NaN", b"1e999", b"[" * 100_000, b'{"a":' * 5000, b"\xff\xfe", b"\xef\xbb\xbf{}",
    b"9" * 5000, b'{"a":1,"a":2}',
)  # fmt: skip
"""Whole files that are wrong."""


def places(value: Any, before: tuple = ()) -> list[tuple]:
    """The ways to every entry of JSON."""
    found = [before] if before else []
    if isinstance(value, dict):
        pairs = list(value.items())
    else:
        pairs = list(enumerate(value))[:20] if isinstance(value, list) else []
    for key, entry in pairs:
        found += places(entry, (*before, key))
    return found


def changed_json(record: Any, rng: random.Random) -> Any:
    """A record with an entry replaced, removed, doubled, moved or added."""
    record = copy.deepcopy(record)
    ways = places(record)
    if not ways:
        return rng.choice(VALUES)
    *way, last = rng.choice(ways)
    inside = record
    for key in way:
        inside = inside[key]
    act = rng.randrange(6)
    if act == 0:
        del inside[last]
    elif act == 1 and isinstance(inside, dict):
        inside[rng.choice(["new", "a/b", "__metadata__", "\u2028", str(last) + "x"])] = rng.choice(VALUES)
    elif act == 2 and isinstance(inside, list):
        inside.insert(0, copy.deepcopy(rng.choice(inside)))
    elif act == 3 and isinstance(inside[last], int | float):
        inside[last] = inside[last] * rng.choice([-1, 2, 1000]) + rng.choice([-1, 0, 1])
    elif act == 4 and isinstance(inside, dict):
        inside[rng.choice(["a", "0", "mask", "left"])] = inside.pop(last)
    else:
        inside[last] = rng.choice(VALUES)
    return record


def as_text(record: Any) -> bytes:
    """JSON, whatever the record holds."""
    return json.dumps(record).encode()


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut off, put in, or all of them others."""
    act = rng.randrange(5)
    if act == 0 or not data:
        return rng.choice(TEXTS)
    place = rng.randrange(len(data))
    if act == 1:
        return data[:place]
    if act == 2:
        return data[:place] + rng.randbytes(rng.randrange(1, 9)) + data[place:]
    if act == 3:
        return rng.randbytes(rng.randrange(64))
    flipped = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def parted(data: bytes) -> tuple[Any, bytes]:
    """The header of a safetensors file as JSON, and what follows."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, rest: bytes) -> bytes:
    """Inverse of `parted`."""
    text = as_text(header)
    return len(text).to_bytes(8, "little") + text + rest


def changed_tensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with a changed header, changed numbers, a tensor renamed or of another shape of the same size."""
    try:
        header, rest = parted(data)
    except (ValueError, RecursionError):
        return changed_bytes(data, rng)
    names = [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []
    act = rng.randrange(6)
    if act == 0 or not names:
        return joined(changed_json(header, rng), rest)
    name = rng.choice(names)
    entry = header[name]
    if (
        not isinstance(entry, dict)
        or set(entry) != {"dtype", "shape", "data_offsets"}
        or not _is_pair(entry["data_offsets"])
    ):
        return joined(changed_json(header, rng), rest)
    if act == 1:
        header[rng.choice(["references", "examples/args/7", "examples/mask", "v_in/a/left", name + "x"])] = header.pop(name)
    elif act == 2:
        shape = entry["shape"] if isinstance(entry["shape"], list) else []
        entry["shape"] = rng.choice([shape[::-1], [1, *shape], shape[1:], [-1], [0]])
    elif act == 3:
        entry["dtype"] = rng.choice(["F32", "I32", "F16", "BF16", "I64", "F64", "BOOL", "U8", "C64", "F4"])
    else:
        start, end = (min(max(0, place), len(rest)) for place in entry["data_offsets"])
        fill = rng.choice([b"\xff", b"\x7f", b"\x00", b"\x80"])
        place = rng.randrange(start, end) if end > start else start
        n = min(end - place, rng.choice([1, 4, 8, end - start]))
        rest = rest[:place] + fill * n + rest[place + n :]
    return joined(header, rest)


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(place, int) for place in value)


def changed(files: Files, rng: random.Random, restamp: Callable[[Files], Files]) -> Files:
    """Files with one to three changes, their checksums made right again more often than not."""
    files = dict(files)
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice(sorted(files))
        act = rng.randrange(10)
        if act == 0:
            files[name] = changed_bytes(files[name], rng)
        elif act == 1:
            files[name] = files[rng.choice(sorted(files))]
        elif name.endswith(".safetensors"):
            files[name] = changed_tensors(files[name], rng)
        else:
            try:
                files[name] = as_text(changed_json(json.loads(files[name]), rng))
            except (ValueError, RecursionError):
                files[name] = changed_bytes(files[name], rng)
    return restamp(files) if rng.random() < 0.85 else files
