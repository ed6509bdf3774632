"""Which coordinates of a batch are kept: a budget over the whole batch, or a threshold."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.errors import FeatureCountError
from param_features.machine import typed


@typed
def batch_top_k(coords: Float[Tensor, "sample feature"], l0: float) -> Bool[Tensor, "sample feature"]:
    """Mark the coordinates that survive selection over the whole batch.

    One threshold serves every sample, so a hard sample may keep many features and an easy one none.
    Cost: one partial sort of `coords`; no gradient flows through the mask.

    Args:
        coords: V_in applied to each gradient, in divergence units (nats for KL) per unit step.
        l0: Mean number of features to keep per sample, in (0, feature].

    Returns:
        True where the coordinate is kept; a new tensor.

    Raises:
        FeatureCountError: `l0` lies outside (0, feature].

    Source: L3D, "Sparse Principal Directions", definition of Λ. Differs: `l0` counts features, the paper's k is a fraction.

    Example:
        >>> batch_top_k(torch.tensor([[3.0, -1.0], [0.5, -4.0]]), l0=1)
        tensor([[ True, False],
                [False,  True]])
    """
    check_l0(l0, coords.shape[1])
    n_kept = round(l0 * len(coords))
    if n_kept == 0:
        return torch.zeros_like(coords, dtype=torch.bool)
    places = coords.detach().abs().flatten().topk(n_kept, sorted=False).indices
    mask = torch.zeros(coords.numel(), dtype=torch.bool, device=coords.device)
    mask[places] = True
    return mask.reshape(coords.shape)


def threshold_for(coords: Float[Tensor, "sample feature"], l0: float) -> float:
    """The |coordinate| at or above which `batch_top_k` would keep, over all given samples."""
    check_l0(l0, coords.shape[1])
    n_kept = max(1, round(l0 * len(coords)))
    return float(coords.abs().flatten().topk(n_kept, sorted=False).values.min())


def check_l0(l0: float, n_features: int) -> None:
    """Refuse a budget that no selection could meet.

    Raises:
        FeatureCountError: `l0` lies outside (0, n_features].
    """
    if not 0 < l0 <= n_features:
        raise FeatureCountError(
            f"l0={l0:g} lies outside (0, {n_features}]. It is the mean number of features kept per sample, of "
            f"n_features={n_features}; try l0={max(1, n_features // 20)}."
        )
