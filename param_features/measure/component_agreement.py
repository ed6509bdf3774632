"""How far two fits have the same components: whole rank-1 matrices, matrix by matrix, beside random ones."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.components import Parts
from param_features.fit.formats import LowRank
from param_features.measure.agreement import assign, cosines
from param_features.measure.controls import gaussian_like


@dataclass(frozen=True)
class Agreement:
    """|Cosine| of U ⊗ V with a second fit's, averaged over the first fit's components.

    Attributes:
        best: The largest with any of the same matrix.
        matched: That of a one-to-one matching; 0 for components that it leaves alone.
        random_best: `best` with random rank-1 matrices, as many as the second fit has.
        random_matched: `matched` with these.
        n: How many components of the first fit there are.
    """

    best: float
    matched: float
    random_best: float
    random_matched: float
    n: int


@torch.no_grad()
def agreement_of(ours: Mapping[str, Parts], theirs: Mapping[str, Parts], generator: torch.Generator) -> Agreement:
    """Compare two fits' components. Cost: a product of all pairs, and an assignment, cubic in components, for each matrix.

    Args:
        ours: The first fit's, by matrix.
        theirs: The second's, of the same matrices.
        generator: Draws the random ones.

    Source: VPD (Goodfire, 2026) reports `best` of two seeds.
    """
    found: dict[str, list[Tensor]] = {"theirs": [], "random": []}
    for name, parts in ours.items():
        second = _directions(theirs[name])
        for title, other in (("theirs", second), ("random", gaussian_like(second, generator))):
            found[title].append(_best_and_matched(_directions(parts), other))
    n = sum(parts.n for parts in ours.values())
    best, matched = (torch.cat(found["theirs"], 1).sum(1) / max(n, 1)).tolist()
    random_best, random_matched = (torch.cat(found["random"], 1).sum(1) / max(n, 1)).tolist()
    return Agreement(best, matched, random_best, random_matched, n)


def _directions(parts: Parts) -> LowRank:
    return LowRank({"": (parts.U.unsqueeze(2), parts.V.unsqueeze(2))})


def _best_and_matched(ours: LowRank, theirs: LowRank) -> Float[Tensor, "two component"]:
    n = ours.n_features
    found = torch.zeros(2, n, dtype=torch.float64)
    if n and theirs.n_features:
        cosine = cosines(ours, theirs).abs()
        pairs = assign(cosine)
        found[0] = cosine.max(1).values
        found[1, pairs[:, 0]] = cosine[pairs[:, 0], pairs[:, 1]]
    return found
