"""Steering some sequences or positions: through the layers' outputs, equal to changed weights where the mask says so."""

import pytest
import torch

import param_features as pf
from param_features.errors import AdapterError, InputError
from tests.exits import EXITS, leave, leaving_by

STEPS = {0: 0.7, 2: -0.4}
SEVERAL = ["blocks.0.attn.W_K", "blocks.1.attn.W_O", "blocks.0.mlp.b_in", "blocks.1.ln2.w", "embed.W_E"]


@pytest.fixture(scope="module")
def features(tiny_hooked, tiny_tokens):
    return pf.decompose(tiny_hooked, SEVERAL, tiny_tokens, n_features=4, l0=1, steps=5, progress=False)


@torch.no_grad()
def by_weights(features, model, tokens):
    with features.steer(STEPS):
        return model(tokens)


@torch.no_grad()
def test_everywhere_equals_changed_weights(features, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:3]
    expected = by_weights(features, tiny_hooked, tokens)
    for where in (torch.ones_like(tokens, dtype=torch.bool), [True] * 3):
        with features.steer(STEPS, where=where):
            torch.testing.assert_close(tiny_hooked(tokens), expected)


@torch.no_grad()
def test_two_prompts_of_a_batch_are_treated_differently(features, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:3]
    plain, steered = tiny_hooked(tokens), by_weights(features, tiny_hooked, tokens)
    with features.steer(STEPS, where=[False, True, False]):
        found = tiny_hooked(tokens)
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(found[1], steered[1])
    assert not torch.allclose(found[1], plain[1])


@torch.no_grad()
def test_a_position_acts_on_itself_and_later_ones(features, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:2]
    plain, where = tiny_hooked(tokens), torch.zeros(2, tokens.shape[1], dtype=torch.bool)
    where[0, 4] = True
    with features.steer(STEPS, where=where):
        found = tiny_hooked(tokens)
    assert torch.equal(found[0, :4], plain[0, :4])
    assert torch.equal(found[1], plain[1])
    assert not torch.allclose(found[0, 4:], plain[0, 4:])


@torch.no_grad()
def test_it_equals_a_loop_that_changes_one_position_by_hand(tiny_hooked, tiny_tokens, tiny_features):
    """W_K alone: the key of one position is that of changed weights, the others are plain."""
    tokens, k = tiny_tokens[:1], "blocks.0.attn.hook_k"
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[0, 3] = True
    _, plain = tiny_hooked.run_with_cache(tokens)
    with tiny_features.steer(STEPS):
        _, steered = tiny_hooked.run_with_cache(tokens)
    keys = torch.where(where[:, :, None, None], steered[k], plain[k])
    expected = tiny_hooked.run_with_hooks(tokens, fwd_hooks=[(k, lambda *_, **__: keys)])
    with tiny_features.steer(STEPS, where=where):
        torch.testing.assert_close(tiny_hooked(tokens), expected)


@torch.no_grad()
def test_the_users_hooks_see_and_feed_the_change(features, tiny_hooked, tiny_tokens):
    """A hook on what the weight reads, added inside the block, is heeded: as with changed weights."""
    tokens, everywhere = tiny_tokens[:2], torch.ones(2, dtype=torch.bool)
    hooks = [("blocks.1.attn.hook_z", lambda z, hook: z * 1.5), ("blocks.0.attn.hook_k", lambda k, hook: k + 0.3)]
    with features.steer(STEPS):
        expected = tiny_hooked.run_with_hooks(tokens, fwd_hooks=hooks)
        _, cache = tiny_hooked.run_with_cache(tokens)
    with features.steer(STEPS, where=everywhere):
        torch.testing.assert_close(tiny_hooked.run_with_hooks(tokens, fwd_hooks=hooks), expected)
        _, found = tiny_hooked.run_with_cache(tokens)
    for name in ("blocks.0.attn.hook_k", "blocks.1.hook_resid_post"):
        torch.testing.assert_close(found[name], cache[name])


def test_gradients_flow_through_it(features, tiny_hooked, tiny_tokens):
    tokens = tiny_tokens[:2]
    weight = tiny_hooked.blocks[0].mlp.W_in
    with features.steer(STEPS):
        expected = torch.autograd.grad(tiny_hooked(tokens).square().sum(), weight)[0]
    with features.steer(STEPS, where=[True, True]):
        found = torch.autograd.grad(tiny_hooked(tokens).square().sum(), weight)[0]
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_generation_with_a_cache_takes_one_truth_value_for_each_sequence():
    from tests.adapters.zoo import fresh

    model = fresh("hooked")
    tokens = torch.randint(4, 20, (40, 5), generator=torch.Generator().manual_seed(2))
    features = pf.decompose(model, "blocks.0.attn.W_V", tokens, n_features=3, l0=1, steps=3, progress=False)
    call = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False, "return_type": "tokens"}
    plain = model.generate(tokens[:2], **call)
    with features.steer({0: 30.0}):
        expected = model.generate(tokens[:2], **call)
    with features.steer({0: 30.0}, where=[True, False]):
        found = model.generate(tokens[:2], **call)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], plain[1])
    assert not torch.equal(expected[0], plain[0])


@pytest.mark.parametrize("error", EXITS)
def test_no_hook_and_no_weight_is_left_changed(features, tiny_hooked, tiny_tokens, error):
    from tests.adapters.zoo import assert_same, snapshot

    before = snapshot(tiny_hooked)
    with leaving_by(error), features.steer(STEPS, where=[True, False]):
        tiny_hooked(tiny_tokens[:2])
        leave(error)
    assert_same(before, snapshot(tiny_hooked))


def test_a_classifier_takes_one_truth_value_for_each_input(classifier, images):
    model = classifier.double().eval()
    images = images.double()
    for name in ("conv.weight", "classifier.weight", "norm.weight"):
        features = pf.decompose(model, name, inputs=images, n_features=3, l0=1, steps=3, progress=False)
        with torch.no_grad():
            plain = model(images[:4])
            with features.steer({0: 2.0}):
                steered = model(images[:4])
            with features.steer({0: 2.0}, where=[True, False, False, True]):
                found = model(images[:4])
        torch.testing.assert_close(found[[0, 3]], steered[[0, 3]])
        assert torch.equal(found[[1, 2]], plain[[1, 2]])
        assert not torch.allclose(steered, plain)
        with pytest.raises(InputError, match=r"\[batch\], since a sample is an input"):
            features.steer({0: 2.0}, where=torch.ones(4, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    "wrong", [torch.ones(3), torch.ones(2, 2, 2, dtype=torch.bool), torch.zeros(0, dtype=torch.bool), [1, 0]]
)
def test_what_is_no_mask_is_refused(features, wrong):
    with pytest.raises(InputError, match=r"Give truth values \[batch\] or \[batch, pos\]"):
        features.steer(STEPS, where=wrong)


def test_a_batch_of_another_shape_is_refused(features, tiny_hooked, tiny_tokens):
    with features.steer(STEPS, where=[True, False, True]), pytest.raises(InputError, match=r"shape \(3,\)"):
        tiny_hooked(tiny_tokens[:2])
    where = torch.ones(2, 4, dtype=torch.bool)
    with features.steer(STEPS, where=where), pytest.raises(InputError, match=r"shape \(2, 4\)"):
        tiny_hooked(tiny_tokens[:2])


def test_a_parameter_without_a_rule_is_refused_by_name(tiny_hooked, tiny_tokens):
    features = pf.decompose(tiny_hooked, "pos_embed.W_pos", tiny_tokens, n_features=3, l0=1, steps=3, progress=False)
    with pytest.raises(AdapterError, match=r"'pos_embed.W_pos' has none here .*Leave where= out"):
        features.steer({0: 1.0}, where=[True])
    with features.steer({0: 1.0}):
        pass
