"""Edited copies and edits for good."""

import copy

import pytest
import torch

from param_features.errors import AdapterError, FingerprintError, ModelStateError

STEPS = {1: 0.5, 4: -2.0}


@torch.no_grad()
def steered_output(features, model, tokens):
    with features.steer(STEPS):
        return model(tokens)


def test_a_copy_is_what_steer_runs_and_shares_nothing(tiny_hooked, tiny_features, tiny_tokens):
    before = {name: tensor.clone() for name, tensor in tiny_hooked.state_dict().items()}
    expected = steered_output(tiny_features, tiny_hooked, tiny_tokens[:2])
    for model in (None, tiny_hooked):
        copied = tiny_features.steered(model, STEPS)
        assert type(copied) is type(tiny_hooked)
        assert torch.equal(copied(tiny_tokens[:2]), expected)
        own = {tensor.data_ptr() for tensor in tiny_hooked.parameters()}
        assert not own & {tensor.data_ptr() for tensor in copied.parameters()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_hooked.state_dict().items())


def test_an_edit_stays_and_says_so(tiny_hooked, tiny_features, tiny_tokens):
    model = copy.deepcopy(tiny_hooked)
    expected = steered_output(tiny_features, tiny_hooked, tiny_tokens[:2])
    own = model.blocks[0].attn.W_K.detach().clone()
    edit = tiny_features.edit(model, STEPS)
    assert torch.equal(model(tiny_tokens[:2]), expected)
    assert edit.coefficients == STEPS
    moved, size = edit.sizes["blocks.0.attn.W_K"]
    assert moved == pytest.approx(float((model.blocks[0].attn.W_K.detach() - own).norm()))
    assert size == pytest.approx(float(own.norm()))
    assert "for good" in repr(edit)
    assert model.blocks[0].attn.W_K.requires_grad
    with pytest.raises(FingerprintError, match="other weights"):
        tiny_features.edit(model, STEPS)


def test_editing_the_features_own_model(tiny_hooked, tiny_features, tiny_tokens, tmp_path):
    import param_features as pf

    model = copy.deepcopy(tiny_hooked)
    tiny_features.save_pretrained(tmp_path / "f")
    features = pf.load(tmp_path / "f", model=model)
    features.edit(None, STEPS)
    assert torch.equal(model(tiny_tokens[:2]), steered_output(tiny_features, tiny_hooked, tiny_tokens[:2]))


def test_editing_while_steering_is_refused(tiny_hooked, tiny_features):
    own = tiny_hooked.blocks[0].attn.W_K.detach().clone()
    with tiny_features.steer({0: 1.0}), pytest.raises(ModelStateError, match="Edit it outside"):
        tiny_features.edit(None, STEPS)
    assert torch.equal(tiny_hooked.blocks[0].attn.W_K.detach(), own)


def test_another_model_is_refused(tiny_features):
    from tests.models import hooked_transformer

    other = hooked_transformer()
    with torch.no_grad():
        other.blocks[0].attn.W_K += 1
    for call in (tiny_features.steered, tiny_features.edit):
        with pytest.raises(FingerprintError, match="other weights"):
            call(other, STEPS)


def test_a_model_that_cannot_be_copied_is_refused(tiny_hooked, tiny_features):
    model = copy.deepcopy(tiny_hooked)
    model.handle = (number for number in range(3))
    with pytest.raises(AdapterError, match="cannot be copied"):
        tiny_features.steered(model, STEPS)
