"""What is saved of a fit: its parameters' records, tensors for safetensors and the rest for JSON."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

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
        tensors |= {f"examples/args/{place}": value for place, value in enumerate(features.examples.args)}
        tensors |= {f"examples/kwargs/{key}": value for key, value in features.examples.kwargs.items()}
        tensors |= {} if features.examples.mask is None else {"examples/mask": features.examples.mask}
    return tensors


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
