"""Features for a target that leave a background alone: the penalty of the fit, and two fits as one dictionary."""

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.dictionary import GradientDictionary, overlaps_of
from param_features.fit.encoder import LINEAR, Encoder
from param_features.fit.formats.low_rank import LowRank
from param_features.fit.loop import Fit
from param_features.fit.pursuit import rounds_for
from param_features.gradients import SampleGradients

_BATCH = 512


class OffTarget:
    """What features cost by acting on a background: weight · Σ_k mean ⟨∇_background, v_k⟩².

    ⟨∇, v_k⟩ is the change of a background sample's divergence per unit step along v_k, to first order. With labels drawn
    from the model's own softmax as references its mean square is vᵀFv, F the Fisher information: twice the KL from the model
    itself, to second order. Gradients are scaled to a mean square norm of 1 on either side, and a feature pays for itself
    where its coordinates' mean square on the target exceeds `weight` times its mean square here.
    """

    def __init__(self, store: SampleGradients, weight: float) -> None:
        """Take a background's gradients and the penalty's weight."""
        self.store, self.weight = store, weight
        self.scale = float(store.square_norm().double().mean().clamp(min=1e-30)) ** -0.5

    def penalty(self, v_in: LowRank, v_out: LowRank, generator: torch.Generator) -> Float[Tensor, ""]:
        """The cost on a batch drawn at random; V_in, where it is another, learns that coordinates are zero here."""
        index = torch.randint(self.store.n_samples, (min(_BATCH, self.store.n_samples),), generator=generator)
        gradients = self.store.rows(index)
        cost = self.weight * self._mean_square(v_out, gradients).sum()
        return cost if v_in is v_out else cost + self._mean_square(v_in, gradients).sum()

    def costs(self, v_out: LowRank) -> Float[Tensor, " feature"]:
        """Each feature's cost per sample, on some 2,048 of the background."""
        return self.weight * self._mean_square(v_out, self.store.rows(slice(0, 2048)))

    def _mean_square(self, directions: LowRank, gradients) -> Float[Tensor, " feature"]:
        return directions.overlaps(gradients).mul(self.scale).square().mean(0)


@torch.no_grad()
def joined_fits(target: Fit, background: Fit, store: SampleGradients, l0: float) -> Fit:
    """One dictionary of both fits' features, the target's first, with the threshold that keeps `l0` per target sample."""
    ours, theirs = target.dictionary, background.dictionary
    v_out = ours.v_out.joined(theirs.v_out)
    v_in = v_out if ours.is_tied else ours.v_in.joined(theirs.v_in)
    encoder = LINEAR if ours.encoder.n_rounds is None else Encoder(rounds_for(l0, v_out.n_features))
    overlaps = overlaps_of(encoder.reads(v_in, v_out), store)
    _, threshold = encoder.kept(overlaps, v_out.gram(), l0)
    return Fit(GradientDictionary(v_in, v_out, threshold, encoder), target.steps_done)
