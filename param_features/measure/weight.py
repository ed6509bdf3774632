"""Where a direction's weight lies."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor


def weight_by_head(
    direction: Mapping[str, Float[Tensor, "..."]], folds: Mapping[str, str]
) -> dict[str, Float[Tensor, " head"]]:
    """Share of a direction's squared norm in each parameter and attention head; all shares sum to 1.

    Args:
        direction: Tensors of the parameters' shapes by name, as `features.direction` gives.
        folds: Each parameter's einops pattern, in which attention heads are an axis named `head`.

    Returns:
        One number for each head; a single one for a parameter whose tensor has no axis of heads.
    """
    total = sum(tensor.square().sum() for tensor in direction.values())
    shares = {}
    for name, tensor in direction.items():
        axes = folds[name].split("->")[0].split()
        by_head = tensor.movedim(axes.index("head"), 0).flatten(1) if "head" in axes else tensor.reshape(1, -1)
        shares[name] = by_head.square().sum(1) / total
    return shares
