"""Which features do little, and what would do more in their place.

A fit falls into states that no small step leaves: a feature that nothing keeps, two features on one circuit, one that
rebuilds a rare mixture of two circuits. In each, removing a feature costs little, for others take its place.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

_MARGIN = 2.0
_APART = 0.5
_CHUNK = 2**24


def usefulness(
    coords: Float[Tensor, "sample feature"],
    left: Float[Tensor, "sample feature"],
    gram: Float[Tensor, "feature feature"],
    threshold: float,
) -> Float[Tensor, " feature"]:
    """By how much the samples' square error grows without each feature, after the best other one has stepped in.

    Without feature k, what is left of a sample grows by c_k v_k: the error by c_k² + 2 c_k ⟨rest, v_k⟩. Another feature j
    wins back ⟨rest + c_k v_k, v_j⟩². Where no other wins back as much as the threshold's square, which is what one more
    coordinate is worth elsewhere, that is subtracted instead. Cost: features times the coordinates kept.

    Args:
        coords: c, zero where a feature is not kept.
        left: ⟨∇ − reconstruction, v_k⟩.
        gram: ⟨v_j, v_k⟩.
        threshold: |coordinate| of the last feature kept.
    """
    samples, features = coords.nonzero(as_tuple=True)
    useful = coords.new_zeros(coords.shape[1])
    size = max(1, _CHUNK // coords.shape[1])
    for sample, feature in zip(samples.split(size), features.split(size), strict=True):
        coord = coords[sample, feature]
        grown = coord.square() + 2 * coord * left[sample, feature]
        others = (left[sample] + coord[:, None] * gram[feature]).scatter_(1, feature[:, None], 0.0)
        won_back = others.square().amax(1).clamp(min=threshold**2)
        useful.index_add_(0, feature, (grown - won_back).clamp(min=0))
    return useful


def replacements(
    useful: Float[Tensor, " feature"], gains: Float[Tensor, " candidate"], gram: Float[Tensor, "candidate candidate"]
) -> tuple[Int[Tensor, " replaced"], Int[Tensor, " replaced"]]:
    """Pair the least useful features with the candidates that gain most, while the gain is twice the use.

    Args:
        useful: See `usefulness`.
        gains: By how much each candidate would lower the square error of the same samples.
        gram: ⟨candidate, candidate⟩ of unit norm; of two with |cosine| above one half only the better is taken.

    Returns:
        Features, and the candidates to put in their place.
    """
    features, candidates = [], []
    weakest = useful.argsort(stable=True).tolist()
    for candidate in gains.argsort(descending=True, stable=True).tolist():
        if len(features) == len(weakest) or float(gains[candidate]) <= _MARGIN * float(useful[weakest[len(features)]]):
            break
        if candidates and float(gram[candidate, candidates].abs().max()) > _APART:
            continue
        features.append(weakest[len(features)])
        candidates.append(candidate)
    return torch.tensor(features, dtype=torch.long), torch.tensor(candidates, dtype=torch.long)
