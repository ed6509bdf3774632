"""Files written whole or not at all, and read as if a stranger had written them."""

from param_features.files.bundle import COMPONENTS, CONFIG, FORMAT, TENSORS, read_bundle, write_bundle
from param_features.files.checked_json import MOST_BYTES, Format, library_version, shown
from param_features.files.disk import (
    Origin,
    alone_in,
    fresh,
    is_full,
    is_plain_name,
    opened,
    read_file,
    size_text,
    sync_folder,
    unfinished,
    write_whole,
)
from param_features.files.places import new_file, new_folder
from param_features.files.schema import MOST_COUNT, Part, is_count, is_number
from param_features.files.tensors import DTYPES, header_bytes, read_header, read_tensors

__all__ = [
    "COMPONENTS",
    "CONFIG",
    "FORMAT",
    "DTYPES",
    "Format",
    "MOST_BYTES",
    "MOST_COUNT",
    "Origin",
    "Part",
    "TENSORS",
    "alone_in",
    "fresh",
    "header_bytes",
    "is_count",
    "is_full",
    "is_number",
    "is_plain_name",
    "library_version",
    "new_file",
    "new_folder",
    "opened",
    "read_bundle",
    "read_file",
    "read_header",
    "read_tensors",
    "shown",
    "size_text",
    "sync_folder",
    "unfinished",
    "write_bundle",
    "write_whole",
]
