"""What is saved of a fit: its parameters' records, tensors for safetensors and the rest for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from param_features.inputs import ModelInputs
from param_features.params import ParamView

if TYPE_CHECKING:
    from param_features.features.base import FittedFeatures


@dataclass(frozen=True)
class ParamRecord:
    """A decomposed parameter as saved: enough to read directions without the model.

    Attributes:
        shape: Shape of the tensor.
        fold: einops pattern from the tensor to [d_out, d_in].
        fingerprint: SHA-256 of its dtype and matrix [d_out, d_in].
        n_places: How many modules hold it: 2 where an embedding is tied with the unembedding.
    """

    shape: tuple[int, ...]
    fold: str
    fingerprint: str
    n_places: int = 1

    @classmethod
    def of(cls, view: ParamView, fingerprint: str) -> "ParamRecord":
        """The record of a model's parameter."""
        return cls(tuple(view.shape), view.fold, fingerprint, len(view.places))


def saved_tensors(features: "FittedFeatures") -> dict[str, Tensor]:
    """Everything saved as tensors."""
    tensors = {"references": features.references}
    directions = {"v_out": features.v_out}
    if features.v_in is not features.v_out:
        directions["v_in"] = features.v_in
    for title, rows in directions.items():
        for name, (left, right) in rows.factors.items():
            tensors |= {f"{title}/{name}/left": left, f"{title}/{name}/right": right}
    if features.examples is not None and features.examples.is_all_tensors:
        tensors |= input_tensors(features.examples, "examples")
    return tensors


def input_tensors(inputs: ModelInputs, title: str) -> dict[str, Tensor]:
    """The arguments that are tensors, by names that begin with `title`."""
    named = {f"args/{place}": value for place, value in enumerate(inputs.args)}
    named |= {f"kwargs/{key}": value for key, value in inputs.kwargs.items()} | {"mask": inputs.mask}
    return {f"{title}/{name}": value for name, value in named.items() if isinstance(value, Tensor)}


def inputs_from(tensors: Mapping[str, Tensor], title: str) -> ModelInputs | None:
    """What `input_tensors` named; None where there is nothing of that title."""
    found = {name.removeprefix(f"{title}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{title}/")}
    args = sorted((name for name in found if name.startswith("args/")), key=lambda name: int(name.removeprefix("args/")))
    kwargs = {name.removeprefix("kwargs/"): found[name] for name in found if name.startswith("kwargs/")}
    if not args and not kwargs:
        return None
    return ModelInputs(tuple(found[name] for name in args), kwargs, found.get("mask"))


def saved_record(features: "FittedFeatures") -> dict[str, Any]:
    """Everything saved as JSON."""
    return {
        "params": {name: asdict(record) for name, record in features.params.items()},
        "is_tied": features.v_in is features.v_out,
        "threshold": features.threshold,
        "n_rounds": features.encoder.n_rounds,
        "divergence": features.divergence.name,
        "reference": features.reference,
        "metrics": dict(features.metrics),
        "config": dict(features.config),
    }
