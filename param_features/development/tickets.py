"""Lottery tickets: which entries of the weights to keep, chosen by features, by magnitude or at random."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.fitted import Fitted
from param_features.machine import own_modes, public

_RULES = ("features", "saliency", "magnitude", "random")
EntryScores = dict[str, Float[Tensor, "d_out d_in"]]


@public
@own_modes()
@torch.no_grad()
def ticket_masks(
    features: Fitted, keep: float = 0.2, *, by: str = "features", seed: int = 0
) -> dict[str, Bool[Tensor, "..."]]:
    """True for the entries of each decomposed parameter that a lottery ticket keeps: as many by every rule.

    By features, entries are ranked by Σ_k I_k |v_k|, I_k being the mean |activation| of feature k on the fit's held-out
    examples: what active features move. A feature is a direction of gradients, so this ranks what the loss is sensitive to,
    not what is large. Its saliency multiplies that by |W|: to first order, what setting an entry to 0 changes. A ticket by
    features has shown nothing where magnitude or chance does as well at the same share.

    Cost: activations of the examples where features count, and |W| for each feature, one after the other.

    Args:
        features: Bound to the trained model.
        keep: Share of each parameter's entries to keep, in (0, 1].
        by: `"features"`, `"saliency"`, `"magnitude"` (|W|) or `"random"`.
        seed: Of random masks.

    Returns:
        Masks by parameter, of the parameters' shapes, on the CPU.

    Raises:
        SettingError: `keep` is out of range, or `by` is unknown.
        NotBoundError: The features were loaded without a model.
        InputError: The features were saved without examples, and the rule needs them.

    Source: Frankle and Carbin 2019 (1803.03635) for tickets and controls; Lee et al. 2019 (1810.02340) for saliency.
    """
    if not 0 < keep <= 1:
        raise SettingError(f"keep={keep} must lie above 0 and be 1 at most: the share of entries that stay.")
    if by not in _RULES:
        raise SettingError(f"by={by!r} is unknown. Accepted: {', '.join(map(repr, _RULES))}.")
    scores = _scores(features, by, seed)
    views = features.bound_engine("ticket_masks").subset.views
    return {view.name: view.from_matrix(_largest(scores[view.name], keep)).bool() for view in views}


def _scores(features: Fitted, by: str, seed: int) -> EntryScores:
    views = features.bound_engine("ticket_masks").subset.views
    sizes = {view.name: view.to_matrix(view.tensor.detach()).double().abs().cpu() for view in views}
    if by == "magnitude":
        return sizes
    if by == "random":
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(size.shape, dtype=torch.float32, generator=generator) for name, size in sizes.items()}
    scores = _feature_scores(features)
    return scores if by == "features" else {name: scores[name] * size for name, size in sizes.items()}


def _feature_scores(features: Fitted) -> EntryScores:
    """Σ_k I_k |v_k|: how far active features move each entry."""
    acts = features.activations_on(features.own_examples)
    impacts = acts.detach().double().abs().flatten(0, -2).mean(0).cpu()
    factors = features.v_out.map(lambda tensor: tensor.detach().double().cpu()).factors
    scores = {}
    for name, (left, right) in factors.items():
        score = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
        for impact, a, b in zip(impacts, left, right, strict=True):
            score += impact * (a @ b.T).abs()
        scores[name] = score
    return scores


def _largest(score: Float[Tensor, "d_out d_in"], keep: float) -> Float[Tensor, "d_out d_in"]:
    """1 for the largest, at least one of them, 0 for the others; of equals the first."""
    flat = score.flatten()
    chosen = torch.zeros_like(flat)
    chosen[flat.argsort(descending=True, stable=True)[: max(1, round(keep * len(flat)))]] = 1
    return chosen.reshape(score.shape)
