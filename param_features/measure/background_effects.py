"""What features do on a background, beside random directions and a fit that knows nothing of it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.fit import Fit
from param_features.fit.formats import LowRank
from param_features.gradients import SampleGradients
from param_features.measure.controls import ControlDictionary, dictionary_error, random_directions

_TINY = 1e-30


@torch.no_grad()
def effect_sizes(v_out: LowRank, store: SampleGradients) -> Float[Tensor, " feature"]:
    """Mean |⟨∇, v_k⟩| over samples: how far a unit step along each feature moves their divergence, to first order."""
    return torch.cat([v_out.inner(chunk) for chunk in store.chunks()]).double().abs().mean(0)


def on_target(v_out: LowRank, target: SampleGradients, background: SampleGradients) -> Float[Tensor, " feature"]:
    """Share of each feature's mean effect that lies on the target, target and background weighing the same: 0 to 1."""
    target_effects, background_effects = effect_sizes(v_out, target), effect_sizes(v_out, background)
    return target_effects / (target_effects + background_effects).clamp(min=_TINY)


def off_target(v_out: LowRank, target: SampleGradients, background: SampleGradients) -> float:
    """Σ_k mean effect on the background / Σ_k mean effect on the target; 1 is an effect that knows no difference.

    A ratio of sums, in which a feature that does little anywhere counts little.
    """
    target_effect, background_effect = effect_sizes(v_out, target).sum(), effect_sizes(v_out, background).sum()
    return float(background_effect / target_effect.clamp(min=_TINY))


def _is_kept(fit: Fit, store: SampleGradients) -> Bool[Tensor, " feature"]:
    """Which features at least one sample keeps by the stored threshold."""
    dictionary = fit.dictionary
    codes = [dictionary.codes(dictionary.code_directions.inner(chunk)) != 0 for chunk in store.chunks()]
    return torch.cat(codes).any(0)


@torch.no_grad()
def background_metrics(
    fit: Fit,
    alone: Fit,
    n_target: int,
    *,
    target: SampleGradients,
    background: SampleGradients,
    rank: int,
    l0: float,
    generator: torch.Generator,
) -> dict[str, float]:
    """Off-target effect and reconstruction of the background on held-out samples, each beside its controls.

    Args:
        fit: Features for the target, then those for the background.
        alone: As many features fitted to the target without a background.
        n_target: How many of `fit`'s are for the target: those that `off_target` is taken over.
        target: Held-out target samples.
        background: Held-out background samples.
        rank: Of the random directions.
        l0: Features kept per sample.
        generator: Draws the random directions.
    """
    like = target.rows(slice(0, 1))
    random = random_directions(like, fit.dictionary.n_features, rank, generator)
    random.scale_(1 / random.norm().clamp(min=_TINY))
    for_target = fit.dictionary.v_out.rows(slice(0, n_target))
    is_pursued = fit.dictionary.encoder.n_rounds is not None
    is_kept = _is_kept(fit, target) | _is_kept(fit, background)
    return {
        "dead": float((~is_kept).sum()),
        "off_target": off_target(for_target, target, background),
        "off_target_alone": off_target(alone.dictionary.v_out, target, background),
        "off_target_random": off_target(random, target, background),
        "background_error": fit.dictionary.error(background, l0),
        "background_alone": alone.dictionary.error(background, l0),
        "background_random": dictionary_error(ControlDictionary.of(random), background, l0, is_pursued=is_pursued),
        "error_alone": alone.dictionary.error(target, l0),
    }
