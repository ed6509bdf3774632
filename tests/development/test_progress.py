"""Restricted and excluded losses against weights put together by hand."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import param_features as pf
from param_features.errors import FeatureCountError, InputError, SettingError, UnknownParameterError

NAME = "blocks.0.attn.W_K"


def loss_with(model, weight, tokens):
    """The oracle."""
    parameter = dict(model.named_parameters())[NAME]
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.copy_(weight)
        loss = cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        parameter.copy_(kept)
    return float(loss)


def projection(features, chosen):
    rows = torch.stack([features.direction(k)[NAME].flatten() for k in chosen]).double()
    return torch.linalg.pinv(rows) @ rows


@pytest.mark.parametrize("chosen", [None, [1, 4]])
def test_losses_are_those_of_weights_put_together_by_hand(tiny_features, tiny_hooked, tiny_tokens, chosen):
    weight = tiny_hooked.state_dict()[NAME].double()
    start = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inside = projection(tiny_features, chosen or range(6))
    away = start - weight
    part = (inside @ away.flatten()).reshape(weight.shape)
    found = pf.development.progress_losses(tiny_features, tiny_tokens, chosen=chosen, initial={NAME: start})
    expected = [loss_with(tiny_hooked, weight + change, tiny_tokens) for change in (0 * away, away - part, part, away)]
    assert [found.trained, found.restricted, found.excluded, found.untrained] == pytest.approx(expected, abs=1e-7)
    assert found.restricted != found.restricted_random
    assert f"{found.excluded:.4f}" in repr(found)


def test_the_mean_stands_for_what_was_there_before(tiny_features, tiny_hooked, tiny_tokens):
    weight = tiny_hooked.state_dict()[NAME].double()
    found = pf.development.progress_losses(tiny_features, tiny_tokens)
    expected = loss_with(tiny_hooked, weight.mean().expand(weight.shape), tiny_tokens)
    assert found.untrained == pytest.approx(expected, abs=1e-7)


def test_the_model_is_as_it_was(tiny_features, tiny_hooked, tiny_tokens):
    before = tiny_hooked.state_dict()[NAME].clone()
    pf.development.progress_losses(tiny_features, tiny_tokens)
    assert torch.equal(tiny_hooked.state_dict()[NAME], before)


def test_another_loss_and_what_is_refused(tiny_features, tiny_tokens):
    found = pf.development.progress_losses(tiny_features, loss=lambda output: 0 * output[:, 0, 0] + 3)
    assert found.trained == found.excluded == 3
    with pytest.raises(SettingError, match="chosen= is empty"):
        pf.development.progress_losses(tiny_features, tiny_tokens, chosen=[])
    with pytest.raises(FeatureCountError, match="no feature 6"):
        pf.development.progress_losses(tiny_features, tiny_tokens, chosen=[6])
    with pytest.raises(UnknownParameterError, match="no tensor for"):
        pf.development.progress_losses(tiny_features, tiny_tokens, initial={})
    with pytest.raises(InputError, match="given as a int"):
        pf.development.progress_losses(tiny_features, tiny_tokens, initial=3)
