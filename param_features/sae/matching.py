"""Which features of two sets go together: a pair with its numbers, and each feature's best correlation with its controls."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A parameter feature, an SAE feature, and how well they go together.

    Attributes:
        feature: The parameter feature.
        sae_feature: The SAE feature.
        correlation: Of their strengths over all samples, -1 to 1.
        auroc: How well the SAE feature tells the parameter feature's top samples from all others, 0.5 by chance; NaN where
            there are none.
        sae_auroc: How well the parameter feature tells the SAE feature's top samples.
        overlap: Jaccard overlap of their top samples, 0 to 1.
        url: The SAE feature's page on Neuronpedia, None where the SAE's metadata names none.
    """

    feature: int
    sae_feature: int
    correlation: float
    auroc: float
    sae_auroc: float
    overlap: float
    url: str | None


@dataclass(frozen=True, eq=False)
class Matching:
    """One set's best correlations with the other set, and what they are worth.

    Attributes:
        best: Each feature's largest correlation with a feature of the other set.
        threshold: From which a feature has a counterpart: the chosen quantile of what random directions reach in its
            stead, or of shuffled samples where that is higher.
        random: The same as `best` with a further set of random directions, for control.
        shuffled: The same as `best` with the SAE's activations moved to other samples.
        counted: Features that are active on some sample; the others have no correlation.
    """

    best: Float[Tensor, " feature"]
    threshold: float
    random: Float[Tensor, " feature"]
    shuffled: Float[Tensor, " feature"]
    counted: Bool[Tensor, " feature"]

    @property
    def shared(self) -> list[int]:
        """Features with a counterpart, the best first."""
        order = self.best.argsort(descending=True, stable=True)
        return order[(self.counted & (self.best > self.threshold))[order]].tolist()

    @property
    def alone(self) -> list[int]:
        """Active features without a counterpart, the least correlated first."""
        order = self.best.argsort(stable=True)
        return order[(self.counted & (self.best <= self.threshold))[order]].tolist()

    def n_above(self, control: str) -> int:
        """Count the directions of a control, `"random"` or `"shuffled"`, that pass for having a counterpart."""
        return int((self.counted & (getattr(self, control) > self.threshold)).sum())

    def median(self, of: str = "best") -> float:
        """The median correlation of `"best"`, `"random"` or `"shuffled"`, over active features."""
        values = getattr(self, of)[self.counted]
        return float(values.median()) if len(values) else float("nan")
