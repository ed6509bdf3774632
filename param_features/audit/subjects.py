"""What is audited: some features of one model on some inputs, and the random directions beside them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from param_features.audit.settings import AuditSettings
from param_features.fit import activations
from param_features.fit.formats import LowRank
from param_features.fitted import Fitted
from param_features.gradients import GradientEngine
from param_features.intervene import weight_norm
from param_features.measure import random_like, shares
from param_features.problem import ModelInputs


@dataclass(frozen=True)
class AuditSubject:
    """Features that are stepped along, and what is known of them before any step.

    Attributes:
        features: All of them.
        inputs: Where.
        chosen: Which features are stepped along, from the sparsest to the densest.
        random: As many unit-norm random directions of the same ranks.
        acts: Activations of the chosen, by V_in.
        slopes: ⟨∇D, v⟩ of the chosen, then of the random directions: the exact derivative of D along each.
        is_kept: Where each of all features is kept.
        n_top: How many samples are top inputs.
        generator: For every random choice.
    """

    features: Fitted
    inputs: ModelInputs
    chosen: list[int]
    random: LowRank
    acts: Float[Tensor, "sample feature"]
    slopes: Float[Tensor, "sample direction"]
    is_kept: Bool[Tensor, "sample all"]
    n_top: int
    generator: torch.Generator

    @cached_property
    def engine(self) -> GradientEngine:
        """The engine of the features' model."""
        return self.features.bound_engine("audit")

    @property
    def directions(self) -> LowRank:
        """The chosen features' directions, then the random ones, all of unit norm."""
        return self.features.v_out.rows(self.chosen).joined(self.random)

    @property
    def norm(self) -> float:
        """‖W‖, the norm of the decomposed parameters."""
        return weight_norm(self.engine.subset)

    @property
    def top(self) -> Bool[Tensor, "sample feature"]:
        """The chosen features' top inputs, ranked as in `top_examples`: by their share of the sample's activations."""
        all_shares = shares(self.acts).abs()
        n_top = min(self.n_top, len(all_shares) // 2)
        least = all_shares.topk(n_top, dim=0).values[-1]
        return all_shares >= least

    @property
    def matched(self) -> list[int]:
        """For each chosen feature, the place of the one whose density is nearest: its neighbour in the order."""
        n = len(self.chosen)
        return [place + 1 if place % 2 == 0 and place + 1 < n else place - 1 for place in range(n)]


def audit_subject(features: Fitted, inputs: ModelInputs, settings: AuditSettings) -> AuditSubject:
    """Choose features and random directions, and read both off every sample's gradient.

    Cost: one pass of activations.
    """
    engine, generator = features.bound_engine("audit"), torch.Generator().manual_seed(settings.seed)
    inputs = inputs.rows(slice(0, settings.n_rows))
    dictionary = features.dictionary.of_gradients("This audit reads gradients", "Audit features of method 'l3d'.")
    directions = features.v_in.joined(features.v_out).joined(dictionary.code_directions)
    products = samples_of(engine, inputs, activations(engine, directions, features.question, inputs))
    acts, slopes, overlaps = products.split(features.n_features, 1)
    is_kept = dictionary.codes(overlaps) != 0
    chosen = spread_by(is_kept.double().mean(0), settings.n_features)
    random = random_like(features.v_out.rows(chosen), generator)
    random_slopes = activations(engine, random, features.question, inputs)
    slopes = torch.cat([slopes[:, chosen], samples_of(engine, inputs, random_slopes)], 1)
    return AuditSubject(features, inputs, chosen, random, acts[:, chosen], slopes, is_kept, settings.n_top, generator)


def samples_of(
    engine: GradientEngine, inputs: ModelInputs, values: Float[Tensor, "*sample feature"]
) -> Float[Tensor, "sample feature"]:
    """One row per real sample, in the order of `read_effects`."""
    if not engine.per_position:
        return values
    return values.flatten(0, 1) if inputs.sample_mask is None else values[inputs.sample_mask.cpu()]


def spread_by(density: Float[Tensor, " feature"], n: int) -> list[int]:
    """`n` of the features that fire at all, evenly over their order by density; all of them where there are fewer."""
    order: Int[Tensor, " feature"] = density.argsort()
    alive = order[density[order] > 0]
    if len(alive) < 2:
        alive = order
    places = torch.linspace(0, len(alive) - 1, min(n, len(alive))).round().long()
    return alive[places].tolist()
