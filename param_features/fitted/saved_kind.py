"""What a folder of features holds of its dictionary, by kind of dictionary."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from param_features.files import Format, Origin, Part
from param_features.fit import Dictionary
from param_features.params import ParamRecord


@dataclass(frozen=True)
class SavedKind:
    """How one kind of dictionary is written and read.

    Attributes:
        format: Of the record.
        fields: What the record has of it.
        optional: What it may have besides.
        metrics: Which metrics are always there.
        tensors: Its tensors by name.
        record: Its fields.
        read: From tensors, record, parameters and the tensors' file for messages, to the dictionary and its tensors' names.
    """

    format: Format
    fields: tuple[str, ...]
    optional: tuple[str, ...]
    metrics: tuple[str, ...]
    tensors: Callable[[Any], dict[str, Tensor]]
    record: Callable[[Any], dict[str, Any]]
    read: Callable[[Mapping[str, Tensor], Part, Mapping[str, ParamRecord], Origin], tuple[Dictionary, Collection[str]]]
