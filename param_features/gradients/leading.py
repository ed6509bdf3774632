"""The leading part of factored gradients, without building their matrices."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients.types import Factored


def leading_of_factored(
    gradient: Factored, rank: int
) -> tuple[Float[Tensor, "sample d_out rank"], Float[Tensor, "sample d_in rank"]]:
    """The leading factors of each gradient, as the singular value decomposition of its matrix gives them, of equal norm.

    By a QR decomposition of either side and an SVD of what is between. Fewer than `rank` where the gradient has no more.
    Cost: pos² · (d_out + d_in) a sample.
    """
    (left, inner), (right, outer) = torch.linalg.qr(gradient.delta.mT), torch.linalg.qr(gradient.inputs.mT)
    u, s, vh = torch.linalg.svd(inner @ outer.mT)
    root = s[:, :rank].sqrt().unsqueeze(1)
    n_kept = root.shape[2]
    return left @ (u[:, :, :n_kept] * root), right @ (vh[:, :n_kept].mT * root)
