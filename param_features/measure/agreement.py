"""One-to-one matching of two dictionaries of directions, through their Gram matrices: nothing of size |W| is built."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.machine import public, typed
from param_features.measure.controls import gaussian_like

SHARES = (0.9, 0.8, 0.5)


@dataclass(frozen=True, eq=False)
class Match:
    """Pairs of features of two sets, each feature in one pair at most, with the largest sum of |cosine|.

    Attributes:
        pairs: Indices in either set, the best pair first.
        cosine: Of each pair's directions, signed: a feature and its negative are the same feature.
        best: For each feature of the first set, its largest |cosine| with any of the second: no less than the matched one.
        control_cosine: Mean |cosine| of the same matching with random directions of the second set's shapes and ranks.
        correlation: Of each pair's activations over all samples, signed as the cosine; None where they were not taken.
    """

    pairs: Int[Tensor, "pair two"]
    cosine: Float[Tensor, " pair"]
    best: Float[Tensor, " feature"]
    control_cosine: float
    correlation: Float[Tensor, " pair"] | None = None

    @property
    def mean_cosine(self) -> float:
        """Mean |cosine| of the pairs, 0 to 1."""
        return float(self.cosine.abs().mean())

    @property
    def mean_correlation(self) -> float | None:
        """Mean over pairs of the correlation, its sign turned with the direction's; None without activations."""
        return None if self.correlation is None else float((self.correlation * self.cosine.sign()).mean())

    @public
    def share_above(self, cosine: float) -> float:
        """Share of the pairs whose |cosine| is larger."""
        return float((self.cosine.abs() > cosine).double().mean())

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.pairs)

    def __repr__(self) -> str:
        """Print the numbers with the control beside them."""
        lines = {
            "pairs": f"{len(self):>7}  one to one, by the largest sum of |cosine|",
            "mean_cosine": f"{self.mean_cosine:>7.3f}  1 where both sets hold the same directions",
            "control_cosine": f"{self.control_cosine:>7.3f}  with random directions of the same shapes and ranks",
            "best": f"{float(self.best.mean()):>7.3f}  mean largest |cosine|, not one to one",
            **{f"above {share}": f"{self.share_above(share):>7.0%}  of the pairs" for share in SHARES},
        }
        if self.mean_correlation is not None:
            lines["correlation"] = f"{self.mean_correlation:>7.3f}  of the pairs' activations"
        return "\n".join(f"{title:<15} {text}" for title, text in lines.items())


@typed
@torch.no_grad()
def match_directions(ours: LowRank, theirs: LowRank, generator: torch.Generator) -> Match:
    """Match two sets of directions over the same parameters.

    Cost: a product of all pairs' factors, and an assignment, cubic in the number of features.

    Args:
        ours: The first set.
        theirs: The second, with the same parameter names and matrix shapes; it may have another size and rank.
        generator: Draws the control.
    """
    cosine = cosines(ours, theirs)
    pairs = assign(cosine)
    control = cosines(ours, gaussian_like(theirs, generator))
    return Match(
        pairs=pairs,
        cosine=cosine[pairs[:, 0], pairs[:, 1]],
        best=cosine.abs().max(1).values,
        control_cosine=float(control[tuple(assign(control).T)].abs().mean()),
    )


def cosines(ours: LowRank, theirs: LowRank) -> Float[Tensor, "feature other"]:
    """Cosine of every pair of directions; on the CPU, in float64."""
    one, two = (rows.map(lambda tensor: tensor.detach().cpu().double()) for rows in (ours, theirs))
    return one.gram(two) / one.norm().clamp(min=1e-30)[:, None] / two.norm().clamp(min=1e-30)


def assign(cosine: Float[Tensor, "feature other"]) -> Int[Tensor, "pair two"]:
    """The pairs with the largest sum of |cosine|, best first (the Hungarian method, by scipy)."""
    from scipy.optimize import linear_sum_assignment  # costs half of what importing this library does

    rows, columns = map(torch.as_tensor, linear_sum_assignment(cosine.abs().numpy(), maximize=True))
    order = cosine[rows, columns].abs().argsort(descending=True, stable=True)
    return torch.stack([rows, columns], 1)[order]


def correlations(
    ours: Float[Tensor, "sample feature"], theirs: Float[Tensor, "sample other"], pairs: Int[Tensor, "pair two"]
) -> Float[Tensor, " pair"]:
    """Pearson correlation of each pair's activations; 0 where one of them is constant."""
    one, two = ours.double()[:, pairs[:, 0]], theirs.double()[:, pairs[:, 1]]
    one, two = one - one.mean(0), two - two.mean(0)
    return (one * two).sum(0) / (one.norm(dim=0) * two.norm(dim=0)).clamp(min=1e-30)
