"""Masks of lottery tickets against scores written out, and equal sparsity by every rule."""

import pytest
import torch

import param_features as pf
from param_features.errors import SettingError

NAME = "blocks.0.attn.W_K"
RULES = ("features", "saliency", "magnitude", "random")


@pytest.mark.parametrize("by", RULES[:3])
def test_the_largest_scores_stay(tiny_features, tiny_hooked, by):
    weight = tiny_hooked.state_dict()[NAME].double().abs()
    acts = tiny_features.activations(tiny_features.examples.tokens)
    moved = torch.zeros_like(weight)
    for feature in range(6):
        moved += acts[..., feature].double().abs().mean() * tiny_features.direction(feature)[NAME].double().abs()
    score = {"features": moved, "saliency": moved * weight, "magnitude": weight}[by]
    mask = pf.development.ticket_masks(tiny_features, 0.3, by=by)[NAME]
    assert mask.shape == weight.shape and mask.dtype == torch.bool
    assert score[mask].min() >= score[~mask].max()


@pytest.mark.parametrize("keep", [0.001, 0.25, 1.0])
def test_every_rule_keeps_as_many(tiny_features, keep):
    counts = [int(pf.development.ticket_masks(tiny_features, keep, by=by)[NAME].sum()) for by in RULES]
    size = tiny_features.direction(0)[NAME].numel()
    assert counts == [max(1, round(keep * size))] * 4


def test_random_masks_are_seeded_and_leave_the_users_generator_alone(tiny_features):
    before = torch.get_rng_state()
    masks = [pf.development.ticket_masks(tiny_features, 0.5, by="random", seed=seed)[NAME] for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_refused(tiny_features):
    for keep in (0, 1.5):
        with pytest.raises(SettingError, match=f"keep={keep} must lie above 0"):
            pf.development.ticket_masks(tiny_features, keep)
    with pytest.raises(SettingError, match="Accepted: 'features', 'saliency', 'magnitude', 'random'"):
        pf.development.ticket_masks(tiny_features, by="size")
