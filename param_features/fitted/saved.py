"""Saved features as they are written, and as they are read: a stranger's files may be whole and still say anything."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.files import CONFIG, TENSORS, Origin, Part, read_bundle, shown, write_bundle
from param_features.fit import Dictionary
from param_features.fitted.metrics import is_counted
from param_features.fitted.saved_components import COMPONENTS
from param_features.fitted.saved_directions import DIRECTIONS
from param_features.fitted.saved_kind import SavedKind
from param_features.params import ParamRecord
from param_features.problem import REFERENCES, ModelInputs, input_tensors, inputs_from, is_position_record

_HEAD = ("format", "format_version", "library_version")
_FIELDS = ("params", "divergence", "reference", "metrics", "config")
_REFERENCES = (*REFERENCES, "given", "pairs")
_KINDS: dict[str, SavedKind] = {"features": DIRECTIONS, "components": COMPONENTS}
_THEN = "Save the features again with features.save_pretrained, or ask who wrote the files."


@dataclass(frozen=True)
class SavedFeatures:
    """Everything in a folder of features, each field as `Fitted` has it; the divergence by its name."""

    params: Mapping[str, ParamRecord]
    dictionary: Dictionary
    divergence: str
    reference: str
    references: Float[Tensor, "n_references d_output"]
    metrics: Mapping[str, float]
    config: Mapping[str, Any]
    examples: ModelInputs | None


def write_saved(directory: str | PathLike, saved: SavedFeatures) -> None:
    """Write a folder of features; see `write_bundle`. Examples that are no tensors are left out."""
    kind = _KINDS[saved.dictionary.kind]
    tensors = {"references": saved.references, **kind.tensors(saved.dictionary)}
    if saved.examples is not None and saved.examples.is_all_tensors:
        tensors |= input_tensors(saved.examples, "examples")
    record = {
        "params": {name: asdict(record) for name, record in saved.params.items()},
        **kind.record(saved.dictionary),
        "divergence": saved.divergence,
        "reference": saved.reference,
        "metrics": dict(saved.metrics),
        "config": dict(saved.config),
    }
    write_bundle(directory, tensors, record, kind.format)


def read_saved(directory: str | PathLike, *, within: Path | None = None) -> SavedFeatures:
    """Read a folder of features and check every field and tensor of it.

    Cost: reads both files once, and each direction's length.

    Args:
        directory: The folder.
        within: See `read_bundle`.

    Raises:
        StoreError: Names the file, the field or tensor, and what would be accepted.
    """
    tensors, record = read_bundle(directory, within=within)
    config_file, tensors_file = (Origin(str(Path(directory) / name), _THEN) for name in (CONFIG, TENSORS))
    whole = Part(record, "", config_file)
    kind = next(kind for kind in _KINDS.values() if kind.format.name == record["format"])
    whole.check_fields((*_HEAD, *kind.fields, *_FIELDS), kind.optional)
    params = {name: ParamRecord.read(part) for name, part in whole.parts("params").items()}
    if not params:
        whole.refuse("params", "at least one parameter")
    dictionary, known = kind.read(tensors, whole, params, tensors_file)
    _check_known(tensors, known, tensors_file)
    return SavedFeatures(
        params=params,
        dictionary=dictionary,
        divergence=whole.text("divergence"),
        reference=whole.choice("reference", _REFERENCES),
        references=_references(tensors, tensors_file),
        metrics=_metrics(whole.part("metrics"), kind.metrics),
        config=_config(whole.part("config"), dictionary.n_features),
        examples=inputs_from(tensors, "examples", tensors_file),
    )


def _check_known(tensors: Mapping[str, Tensor], known: Collection[str], origin: Origin) -> None:
    unknown = [name for name in tensors if name not in known and name != "references" and not name.startswith("examples/")]
    if unknown:
        origin.refuse(f"holds the unknown tensors {', '.join(map(shown, sorted(unknown)[:8]))}")


def _references(tensors: Mapping[str, Tensor], origin: Origin) -> Float[Tensor, "n_references d_output"]:
    references = tensors.get("references")
    if references is None:
        origin.refuse("lacks the tensor 'references'")
    is_matrix = references.is_floating_point() and references.dim() == 2 and references.numel() > 0
    if not is_matrix or not bool(references.isfinite().all()):
        origin.refuse(
            f"holds references, {references.dtype} of shape {tuple(references.shape)}; accepted: finite floats "
            "[n_references, d_output] with at least one of each"
        )
    return references


def _metrics(part: Part, needed: Collection[str]) -> dict[str, float]:
    """Numbers by name; one that was not finite when it was written is null, and NaN here."""
    part.named().check_fields(needed, part.body)
    for name in part.body:
        if is_counted(name):
            part.number(name, least=0)
    return {name: torch.nan if part.is_null(name) else part.number(name) for name in part.body}


def _config(part: Part, n_features: int) -> Mapping[str, Any]:
    """The record of the run. It may say anything; what this library reads of it must be of its kind.

    Raises:
        StoreError: It is not.
    """
    for check, names in (
        (part.count, ("n_features", "rank", "steps_done")),
        (part.number, ("seed",)),
        (part.part, ("harvest", "fit", "measure", "store", "background")),
        (part.text, ("method", "format", "model")),
    ):
        for name in names:
            if name in part.body:
                check(name)
    if "n_components" in part.body:
        counts = part.part("n_components").named()
        for name in counts.body:
            counts.count(name, least=1)
    if not part.is_null("output"):
        part.text("output")
    if "positions" in part.body and not is_position_record(part.body["positions"]):
        part.refuse("positions", "'last', a whole number, a slice, truth values or the name of a function")
    if "steps" in part.body.get("fit", {}):
        part.part("fit").count("steps")
    if "background" in part.body:
        _numbers(part.part("background"), "on_target", n_features)
    return {**part.body, "history": _numbers(part, "history")} if "history" in part.body else part.body


def _numbers(part: Part, key: str, n: int | None = None) -> list[float]:
    """A list of numbers, of so many where that is known; null is NaN, as in `_metrics`."""
    part.check_fields((key,), part.body)
    value = part.body[key]
    is_good = isinstance(value, list) and (n is None or len(value) == n)
    if not is_good or not all(entry is None or isinstance(entry, int | float) for entry in value):
        part.refuse(key, "a list of numbers" if n is None else f"a list of {n} numbers")
    return [torch.nan if entry is None else entry for entry in value]
