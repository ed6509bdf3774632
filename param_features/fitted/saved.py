"""Saved features as they are written, and as they are read: a stranger's files may be whole and still say anything."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.files import CONFIG, TENSORS, Origin, Part, read_bundle, shown, write_bundle
from param_features.fit import Dictionary, Encoder
from param_features.fit.formats import LowRank
from param_features.fitted.metrics import ALWAYS, is_counted
from param_features.params import ParamRecord
from param_features.problem import REFERENCES, ModelInputs, input_tensors, inputs_from, is_position_record

_HEAD = ("format", "format_version", "library_version")
_FIELDS = ("params", "is_tied", "threshold", "divergence", "reference", "metrics", "config")
_KINDS = (*REFERENCES, "given", "pairs")
_THEN = "Save the features again with features.save_pretrained, or ask who wrote the files."
_OFF_UNIT = 1e-2
"""How far a norm may lie from 1: directions of bfloat16 have two digits."""


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
    is_tied = saved.dictionary.is_tied
    tensors = {"references": saved.references}
    for title, rows in {"v_out": saved.dictionary.v_out, **({} if is_tied else {"v_in": saved.dictionary.v_in})}.items():
        for name, (left, right) in rows.factors.items():
            tensors |= {f"{title}/{name}/left": left, f"{title}/{name}/right": right}
    if saved.examples is not None and saved.examples.is_all_tensors:
        tensors |= input_tensors(saved.examples, "examples")
    record = {
        "params": {name: asdict(record) for name, record in saved.params.items()},
        "is_tied": is_tied,
        "threshold": saved.dictionary.threshold,
        "n_rounds": saved.dictionary.encoder.n_rounds,
        "divergence": saved.divergence,
        "reference": saved.reference,
        "metrics": dict(saved.metrics),
        "config": dict(saved.config),
    }
    write_bundle(directory, tensors, record)


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
    whole.check_fields((*_HEAD, *_FIELDS), ("n_rounds",))
    params = {name: ParamRecord.read(part) for name, part in whole.parts("params").items()}
    if not params:
        whole.refuse("params", "at least one parameter")
    titles = ("v_out",) if whole.flag("is_tied") else ("v_out", "v_in")
    directions = {title: _directions(tensors, title, params, tensors_file) for title in titles}
    v_out = directions["v_out"]
    _check_known(tensors, directions, tensors_file)
    _check_unit(v_out, tensors_file)
    if "v_in" in directions and directions["v_in"].n_features != v_out.n_features:
        tensors_file.refuse(f"holds {v_out.n_features} directions in v_out and {directions['v_in'].n_features} in v_in")
    n_rounds = None if whole.is_null("n_rounds") else whole.count("n_rounds", least=1, most=v_out.n_features)
    return SavedFeatures(
        params=params,
        dictionary=Dictionary(directions.get("v_in", v_out), v_out, whole.number("threshold", least=0), Encoder(n_rounds)),
        divergence=whole.text("divergence"),
        reference=whole.choice("reference", _KINDS),
        references=_references(tensors, tensors_file),
        metrics=_metrics(whole.part("metrics")),
        config=_config(whole.part("config"), v_out.n_features),
        examples=inputs_from(tensors, "examples", tensors_file),
    )


def _directions(tensors: Mapping[str, Tensor], title: str, params: Mapping[str, ParamRecord], origin: Origin) -> LowRank:
    """Both factors of every parameter, of the shapes that its record says.

    Raises:
        StoreError: One is missing, or of another shape or dtype.
    """
    factors = {}
    for name, record in params.items():
        pair = tuple(_factor(tensors, f"{title}/{name}/{side}", origin) for side in ("left", "right"))
        shapes = [tuple(tensor.shape) for tensor in pair]
        n_features, rank = shapes[0][0], shapes[0][2]
        if min(n_features, rank) < 1 or shapes != [(n_features, d, rank) for d in record.matrix_shape]:
            origin.refuse(
                f"holds {title}/{shown(name)} of shapes {shapes[0]} and {shapes[1]}; accepted: [feature, "
                f"{record.matrix_shape[0]}, rank] and [feature, {record.matrix_shape[1]}, rank] with at least one of each"
            )
        factors[name] = pair
    if len({(len(left), left.dtype) for pair in factors.values() for left in pair}) != 1:
        origin.refuse(f"holds {title} whose parameters differ in the number of features or in dtype")
    return LowRank(factors)


def _factor(tensors: Mapping[str, Tensor], name: str, origin: Origin) -> Tensor:
    factor = tensors.get(name)
    if factor is None:
        origin.refuse(f"lacks the tensor {shown(name)}")
    if not factor.is_floating_point() or factor.dim() != 3 or not bool(factor.isfinite().all()):
        origin.refuse(
            f"holds {shown(name)}, {factor.dtype} of shape {tuple(factor.shape)}; accepted: finite floats [feature, d, rank]"
        )
    return factor


def _check_known(tensors: Mapping[str, Tensor], directions: Mapping[str, LowRank], origin: Origin) -> None:
    known = {
        f"{title}/{name}/{side}" for title, rows in directions.items() for name in rows.factors for side in ("left", "right")
    }
    unknown = [name for name in tensors if name not in known and name != "references" and not name.startswith("examples/")]
    if unknown:
        origin.refuse(f"holds the unknown tensors {', '.join(map(shown, sorted(unknown)[:8]))}")


def _check_unit(v_out: LowRank, origin: Origin) -> None:
    norm = v_out.map(lambda tensor: tensor.float() if tensor.dtype != torch.float64 else tensor).norm()
    worst = int((norm - 1).abs().nan_to_num(torch.inf).argmax())
    if not abs(float(norm[worst]) - 1) <= _OFF_UNIT:
        origin.refuse(f"holds v_out whose direction {worst} has norm {float(norm[worst]):.4g}; accepted: 1")


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


def _metrics(part: Part) -> dict[str, float]:
    """Numbers by name; one that was not finite when it was written is null, and NaN here."""
    part.named().check_fields(ALWAYS, part.body)
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
