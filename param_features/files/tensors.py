"""Files of tensors by name, in the safetensors format: every entry of the header is checked before a tensor is made."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from safetensors.torch import load
from torch import Tensor

from param_features.files.checked_json import parse_json, shown
from param_features.files.disk import Origin
from param_features.files.schema import is_count

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64,
}  # fmt: skip
"""Dtypes by the names that safetensors has for them."""

MOST_HEADER = 2**26
"""Bytes of a header; some 400,000 tensors."""

_MOST_DIMS = 16
_CUT = "it was cut short or edited"


class Entry(NamedTuple):
    """Where a file holds a tensor, and of which kind it is.

    Attributes:
        dtype: By its name in `DTYPES`.
        shape: Its own.
        start: Where its bytes begin, from the beginning of the file.
        end: Where they end.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Header(NamedTuple):
    """What the header of a file says about its tensors.

    Attributes:
        entries: By name.
        metadata: Texts by name.
    """

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_tensors(data: bytes, origin: Origin) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata in the bytes of a file.

    Raises:
        StoreError: They are not a whole safetensors file, or hold a tensor of a kind that this library does not write.
    """
    header = read_header(data, len(data), origin)
    return load(data), header.metadata


def header_bytes(head: bytes, n_bytes: int, origin: Origin) -> int:
    """Tell how long the header is, by the first eight bytes of a file of so many.

    Raises:
        StoreError: The file cannot hold it.
    """
    length = int.from_bytes(head[:8], "little")
    if len(head) < 8 or not 2 <= length <= min(n_bytes - 8, MOST_HEADER):
        origin.refuse(f"is not a safetensors file (its header cannot have {length:,} of {n_bytes:,} bytes): {_CUT}")
    return length


def read_header(data: bytes, n_bytes: int, origin: Origin) -> Header:
    """Read the header of a file of so many bytes, of which at least the header is given.

    Raises:
        StoreError: The bytes are no whole header, or it describes a tensor of a kind that this library does not write.
    """
    length = header_bytes(data, n_bytes, origin)
    described = parse_json(data[8 : 8 + length], Origin(f"The header of {origin.where}", origin.advice))
    if not isinstance(described, dict):
        origin.refuse(f"is not a safetensors file (its header is {shown(described)}, not an object): {_CUT}")
    metadata = described.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        origin.refuse(f"is not a safetensors file (its metadata are {shown(metadata)}, not texts): {_CUT}")
    entries = {name: _entry(name, body, 8 + length, origin) for name, body in described.items()}
    _check_places(entries, 8 + length, n_bytes, origin)
    return Header(entries, metadata)


def _entry(name: str, body: Any, first: int, origin: Origin) -> Entry:
    fault = _fault(body)
    if fault:
        origin.refuse(f"is not a safetensors file (tensor {shown(name)} {fault}): {_CUT}")
    start, end = body["data_offsets"]
    return Entry(body["dtype"], tuple(body["shape"]), first + start, first + end)


def _fault(body: Any) -> str:
    """What is wrong with an entry of a header; empty where nothing is."""
    if not isinstance(body, dict) or set(body) != {"dtype", "shape", "data_offsets"}:
        return f"is {shown(body)}, not its dtype, shape and data_offsets"
    dtype, shape, places = body["dtype"], body["shape"], body["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"has dtype {shown(dtype)}; accepted: {', '.join(DTYPES)}"
    if not isinstance(shape, list) or len(shape) > _MOST_DIMS or not all(map(is_count, shape)):
        return f"has shape {shown(shape)}, not at most {_MOST_DIMS} whole numbers"
    if not isinstance(places, list) or len(places) != 2 or not all(map(is_count, places)):
        return f"has data_offsets {shown(places)}, not two whole numbers"
    if math.prod(max(1, d) for d in shape) >= 2**60:
        return f"has shape {shown(shape)}, which no memory holds"
    if places[1] - places[0] != math.prod(shape) * DTYPES[dtype].itemsize:
        return f"has {places[1] - places[0]:,} bytes for shape {shown(shape)} of {dtype}"
    return ""


def _check_places(entries: Mapping[str, Entry], first: int, n_bytes: int, origin: Origin) -> None:
    """Refuse tensors that overlap, leave gaps, or do not end with the file."""
    end = first
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            origin.refuse(f"is not a safetensors file (its tensors overlap or leave gaps): {_CUT}")
        end = entry.end
    if end != n_bytes:
        origin.refuse(f"is not a safetensors file (its tensors end at byte {end:,} of {n_bytes:,}): {_CUT}")
