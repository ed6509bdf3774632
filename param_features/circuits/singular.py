"""Features by their singular parts, heads apart; and the same turned at random."""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Components:
    """Features v = Σ_r σ_r a_r b_rᵀ of one query or key matrix, largest σ first.

    Attributes:
        writes: σ_r a_r, by head.
        readings: b_r, orthonormal; the entry of largest size is positive.
    """

    writes: Float[Tensor, "feature head d_head rank"]
    readings: Float[Tensor, "feature d_model rank"]

    @property
    def by_head(self) -> Float[Tensor, "feature head"]:
        """The squared norm in each head: the share of the whole direction's, which is of unit norm."""
        return self.writes.square().sum((2, 3))

    @property
    def leading(self) -> Float[Tensor, " feature"]:
        """The share of the squared norm that is the first component's."""
        each = self.writes.square().sum((1, 2))
        return each[:, 0] / each.sum(1).clamp(min=torch.finfo(each.dtype).tiny)


def singular_components(
    left: Float[Tensor, "feature d_out rank"], right: Float[Tensor, "feature d_model rank"]
) -> tuple[Float[Tensor, "feature d_model component"], Float[Tensor, "feature d_out component"]]:
    """Compute b_r, and σ_r a_r, of left rightᵀ. Cost: a QR and a small SVD per feature."""
    basis, small = torch.linalg.qr(right)
    a, sigma, b = torch.linalg.svd(left @ small.mT, full_matrices=False)
    readings, writes = basis @ b.mT, a * sigma.unsqueeze(1)
    largest = readings.abs().argmax(1, keepdim=True)
    sign = readings.gather(1, largest).sign()
    return readings * sign, writes * sign


def turned_at_random(components: Components, generator: torch.Generator) -> Components:
    """Turn every head's part of the features by a random rotation of its own.

    Norms, singular values, readings and shares of heads stay. (Turning the readings as well would change no score.)
    """
    triangular = torch.linalg.qr(components.writes).R
    drawn = torch.randn(
        *triangular.shape[:2], components.writes.shape[2], triangular.shape[2], dtype=torch.float32, generator=generator
    )
    frame, upper = torch.linalg.qr(drawn.to(triangular))
    frame = frame * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # or the first column would point downwards
    return Components(einsum(frame, triangular, "f head d s, f head s r -> f head d r"), components.readings)
