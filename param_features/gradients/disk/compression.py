"""Gradients stored in less room than they take, and what that loses."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError, nearest
from param_features.gradients.disk.shards import Stored
from param_features.gradients.leading import leading_of_factored
from param_features.gradients.store import square_norm
from param_features.gradients.types import Dense, Factored, Gradient, Gradients, Indexed

STORED_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
_PIECE = 2**24
"""Numbers of the dense differences that exist at a time."""


class Loss(NamedTuple):
    """What storing some samples in less room lost.

    Attributes:
        lost: Σ ‖∇ − stored‖² over samples.
        norm: Σ ‖∇‖².
        worst: Largest ‖∇ − stored‖² / ‖∇‖² of one sample.
    """

    lost: float = 0.0
    norm: float = 0.0
    worst: float = 0.0

    @property
    def share(self) -> float:
        """The share of the gradients' squared norm that is lost, in the units of the reconstruction error."""
        return self.lost / self.norm if self.norm else 0.0

    def __add__(self, other: "Loss") -> "Loss":  # type: ignore[override]
        """Add the losses of two groups of samples."""
        return Loss(self.lost + other.lost, self.norm + other.norm, max(self.worst, other.worst))


@dataclass(frozen=True)
class Compression:
    """How training gradients are stored.

    Attributes:
        rank: Leading factors that are kept of each sample's gradient of each parameter; all of it where there is none.
        dtype: Of what is stored, `"float32"` (as the gradients come) or `"bfloat16"`; reading gives float32.
    """

    rank: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.rank is not None and self.rank < 1:
            raise SettingError(f"compress_rank={self.rank} must be at least 1, or None to keep gradients whole.")
        if self.dtype not in STORED_DTYPES:
            raise SettingError(
                f"dtype={self.dtype!r} is unknown. Accepted: {', '.join(map(repr, STORED_DTYPES))}; nearest: "
                f"{nearest(self.dtype, STORED_DTYPES)}."
            )

    @property
    def is_none(self) -> bool:
        """Whether gradients are stored as they are."""
        return self.rank is None and STORED_DTYPES[self.dtype] is None

    def __str__(self) -> str:
        """Name the compression as a store is printed with it."""
        parts = [] if self.rank is None else [f"to rank {self.rank}"]
        parts += [] if STORED_DTYPES[self.dtype] is None else [f"to {self.dtype}"]
        return " and ".join(parts) or "none"

    def applied(self, gradients: Gradients) -> Gradients:
        """The gradients as they are stored. Cost: a small decomposition of each sample's gradient."""
        return {name: self._cast(self._leading(gradient)) for name, gradient in gradients.items()}

    def stored(self, gradients: Gradients) -> dict[str, Stored]:
        """How gradients like these lie in a shard once they are compressed."""
        read_as = None if STORED_DTYPES[self.dtype] is None else "F32"
        compressed = self.applied(gradients)
        return {name: replace(Stored.like(gradient), read_as=read_as) for name, gradient in compressed.items()}

    def _leading(self, gradient: Gradient) -> Gradient:
        """The leading factors where they are fewer numbers than the gradient; a table's gradients are sparse already."""
        d_out, d_in = gradient.matrix_shape
        n_stored = sum(tensor.shape[1:].numel() for tensor in gradient.tensors)
        if self.rank is None or isinstance(gradient, Indexed) or self.rank * (d_out + d_in) >= n_stored:
            return gradient
        left, right = _leading_factors(gradient, self.rank)
        return Factored(left.mT.contiguous(), right.mT.contiguous())

    def _cast(self, gradient: Gradient) -> Gradient:
        dtype = STORED_DTYPES[self.dtype]
        return gradient.map(lambda tensor: tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor)


def _leading_factors(gradient: Dense | Factored, rank: int) -> tuple[Tensor, Tensor]:
    if isinstance(gradient, Factored):
        return leading_of_factored(gradient, rank)
    u, s, vh = torch.linalg.svd(gradient.matrix, full_matrices=False)
    root = s[:, :rank].sqrt().unsqueeze(1)
    return u[:, :, :rank] * root, vh[:, :rank].mT * root


def loss_of(gradients: Gradients, stored: Gradients) -> Loss:
    """What compressed gradients lost, measured on what is stored, rounding included; in float64."""
    lost = torch.stack([_square_distance(gradients[name], stored[name]) for name in gradients]).sum(0)
    norm = square_norm({name: gradient.map(_double) for name, gradient in gradients.items()})
    share = torch.where(norm > 0, lost / norm.clamp(min=torch.finfo(torch.float64).tiny), lost)
    return Loss(float(lost.sum()), float(norm.sum()), float(share.max()))


def _square_distance(whole: Gradient, stored: Gradient) -> Float[Tensor, " sample"]:
    """‖whole − stored‖² of each sample: from the factors, or from a few samples' matrices at a time."""
    d_out, d_in = whole.matrix_shape
    if isinstance(whole, Factored) and isinstance(stored, Factored):
        pairs = zip(whole.map(_double).tensors, (-_double(stored.delta), _double(stored.inputs)), strict=True)
        return Factored(*(torch.cat(pair, 1) for pair in pairs)).square_norm().clamp(min=0)
    parts = []
    for rows in torch.arange(whole.n_samples, device=whole.tensors[0].device).split(max(1, _PIECE // (d_out * d_in))):
        a, b = (side.map(lambda tensor, rows=rows: _double(tensor[rows])).dense().matrix for side in (whole, stored))
        parts.append((a - b).square().sum((1, 2)))
    return torch.cat(parts)


def _double(tensor: Tensor) -> Any:
    return tensor.double() if tensor.is_floating_point() else tensor
