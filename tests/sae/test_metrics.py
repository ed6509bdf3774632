"""An SAE's numbers, against loops and the library's own hooks."""

import math

import pytest
import torch

import param_features as pf
from param_features.errors import FeatureMismatchError, InputError, SettingError, UnknownHookError
from tests.saes import TRANSCODERS, random_sae, sae_library, sae_of

HOOK = "blocks.0.hook_resid_post"


@pytest.fixture(autouse=True, scope="module")
def _library():
    return sae_library()


@pytest.fixture(scope="module")
def sae():
    return random_sae(d_in=16, d_sae=30, metadata={"hook_name": HOOK})


def identity(d_in=16):
    """An SAE that rebuilds everything: each number's positive and negative part is a feature."""
    eye = torch.eye(d_in)
    return sae_of(torch.cat([eye, -eye], 1), dtype="float64", hook_name=HOOK)


def cross_entropy(model, tokens, replace):
    """Mean over all predicted tokens, one at a time."""
    logits = model.run_with_hooks(tokens, fwd_hooks=[(HOOK, replace)]).detach()
    found = [
        -float(logits[row, pos].log_softmax(0)[tokens[row, pos + 1]])
        for row in range(len(tokens))
        for pos in range(tokens.shape[1] - 1)
    ]
    return sum(found) / len(found)


def test_numbers_are_those_of_loops(sae, tiny_hooked, tiny_tokens):
    found = pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens)
    acts = tiny_hooked.run_with_cache(tiny_tokens)[1][HOOK].detach().flatten(0, 1)
    with torch.no_grad():
        codes, rebuilt = sae.encode(acts.float()), sae(acts.float()).double()
    active = codes != 0
    assert found["l0"] == pytest.approx(float(active.sum(1).double().mean()))
    torch.testing.assert_close(found.densities, active.double().mean(0))
    assert found["density"] == pytest.approx(float(active.double().mean(0).median()))
    assert found["dead"] == int((~active).all(0).sum())
    error = float((rebuilt - acts).square().sum() / (acts - acts.mean(0)).square().sum())
    assert found["mse"] == pytest.approx(error, rel=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - error, rel=1e-5)
    assert (found["n_samples"], found["n_features"]) == (400, 30)


def test_losses_are_those_of_the_librarys_own_hooks(sae, tiny_hooked, tiny_tokens, monkeypatch):
    monkeypatch.setattr("param_features.sae.metrics._POSITIONS_PER_BATCH", 70)  # seven rows at a time
    found = pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens)
    acts = tiny_hooked.run_with_cache(tiny_tokens)[1][HOOK].detach()

    def rebuild(value, hook):
        with torch.no_grad():
            return sae(value.float()).double()

    expected = {
        "loss": lambda value, hook: value,
        "loss_reconstructed": rebuild,
        "loss_zero": lambda value, hook: torch.zeros_like(value),
        "loss_mean": lambda value, hook: acts.mean((0, 1)).expand_as(value),
    }
    for name, replace in expected.items():
        assert found[name] == pytest.approx(cross_entropy(tiny_hooked, tiny_tokens, replace), rel=1e-6), name
    share = (found["loss_zero"] - found["loss_reconstructed"]) / (found["loss_zero"] - found["loss"])
    assert found["loss_recovered"] == pytest.approx(share)


def test_a_perfect_sae_loses_nothing_and_an_empty_one_is_zero_ablation(tiny_hooked, tiny_tokens):
    perfect = pf.sae.sae_metrics(identity(), tiny_hooked, tiny_tokens)
    assert perfect["mse"] == pytest.approx(0, abs=1e-12)
    assert perfect["loss_recovered"] == perfect["loss_recovered_mean"] == pytest.approx(1)
    empty = pf.sae.sae_metrics(sae_of(torch.zeros(16, 4), hook_name=HOOK), tiny_hooked, tiny_tokens)
    assert empty["loss_recovered"] == pytest.approx(0)
    assert (empty["l0"], empty["dead"]) == (0, 4)
    assert sum(empty.histogram()[0]) == 0


def test_padding_changes_nothing(sae, tiny_hooked):
    texts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    left = {"input_ids": [[1, 2, 3, 4, 5], [9, 9, 6, 7, 8]], "attention_mask": [[1] * 5, [0, 0, 1, 1, 1]]}
    found = [pf.sae.sae_metrics(sae, tiny_hooked, given) for given in (texts, left)]
    for name in found[0]:
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-6), name
    alone = [pf.sae.sae_metrics(sae, tiny_hooked, torch.tensor([text]))["loss_reconstructed"] for text in texts]
    assert found[0]["loss_reconstructed"] == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6)


PLACES = {"hook_name": "blocks.0.hook_resid_mid", "hook_name_out": "blocks.0.mlp.hook_post"}


@pytest.mark.parametrize("architecture", TRANSCODERS)
def test_a_transcoder_is_held_against_what_the_model_writes(architecture, tiny_hooked):
    d_out = tiny_hooked.cfg.d_mlp
    sae = random_sae(architecture, d_in=16, d_sae=30, d_out=d_out, metadata=PLACES)
    texts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    found = pf.sae.sae_metrics(sae, tiny_hooked, texts)
    read, written, losses = [], [], 0.0
    for text in texts:
        tokens = torch.tensor([text])
        cache = tiny_hooked.run_with_cache(tokens)[1]
        read, written = [*read, cache[PLACES["hook_name"]][0]], [*written, cache[PLACES["hook_name_out"]][0]]
        hook = (PLACES["hook_name_out"], lambda value, hook, acts=read[-1]: sae(acts.float()).to(value).expand_as(value))
        logits = tiny_hooked.run_with_hooks(tokens, fwd_hooks=[hook]).detach()
        losses -= float(sum(logits[0, pos].log_softmax(0)[text[pos + 1]] for pos in range(len(text) - 1)))
    acts, target = torch.cat(read).detach().float(), torch.cat(written).detach()
    with torch.no_grad():
        error = float((sae(acts) - target).square().sum() / (target - target.mean(0)).square().sum())
        assert found["l0"] == pytest.approx(float((sae.encode(acts) != 0).sum(1).double().mean()))
    assert found["explained_variance"] == pytest.approx(1 - error, rel=1e-5)
    assert found["loss_reconstructed"] == pytest.approx(losses / 6, rel=1e-5)
    zero = {"input_ids": [[1, 2, 3, 4, 5], [9, 9, 6, 7, 8]], "attention_mask": [[1] * 5, [0, 0, 1, 1, 1]]}
    assert pf.sae.sae_metrics(sae, tiny_hooked, zero)["loss_reconstructed"] == pytest.approx(losses / 6, rel=1e-5)


def test_a_transcoder_of_a_linear_layer_explains_all_of_it(tiny_hooked, tiny_tokens):
    """The skip connection alone: the model's W_O, from what heads give to what attention writes."""
    settings = {"d_out": 16, "dtype": "float64", "metadata": {"hook_name": "blocks.0.attn.hook_z"}}
    sae = random_sae("skip_transcoder", d_in=16, **settings)
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_skip.copy_(tiny_hooked.blocks[0].attn.W_O.flatten(0, 1).T)
        sae.b_dec.copy_(tiny_hooked.blocks[0].attn.b_O)
    found = pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens, hook_name_out="blocks.0.hook_attn_out")
    assert found["explained_variance"] == pytest.approx(1)
    assert found["loss_recovered"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, InputError, "do not name where it writes. Say hook_name_out="),
        ({"hook_name_out": "blocks.0.hook_mlp"}, UnknownHookError, "Nearest: 'blocks.0.hook_mlp_"),
        ({"hook_name_out": "blocks.0.mlp.hook_post"}, FeatureMismatchError, r"samples \(400,\) and writes 16 numbers"),
    ],
)
def test_where_a_transcoder_writes_is_checked(changes, error, message, tiny_hooked, tiny_tokens):
    sae = random_sae("transcoder", d_in=16, d_out=16, metadata={"hook_name": HOOK})
    with pytest.raises(error, match=message):
        pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens, **changes)


def test_an_sae_writes_nowhere_else(sae, tiny_hooked, tiny_tokens):
    with pytest.raises(SettingError, match="rebuilds what it reads"):
        pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens, hook_name_out="blocks.0.hook_mlp_out")


def test_images_have_no_losses(classifier, images):
    found = pf.sae.sae_metrics(random_sae(d_in=48, d_sae=60), classifier, inputs=images, hook_name="conv")
    assert found["n_samples"] == 60
    assert "loss" not in found
    assert found["mse"] > 0


def test_the_histogram_counts_every_living_feature(sae, tiny_hooked, tiny_tokens):
    found = pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens)
    counts, edges = found.histogram(5)
    assert sum(counts) == 30 - found["dead"]
    alive = found.densities[found.densities > 0]
    assert (edges[0], edges[-1]) == pytest.approx((math.log10(float(alive.min())), math.log10(float(alive.max()))))


def test_what_is_printed_names_every_number(sae, tiny_hooked, tiny_tokens):
    found = pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens)
    text = repr(found)
    assert len(text.splitlines()) == len(found)
    assert all(name in text for name in found)


def test_an_sae_of_another_place_is_refused(tiny_hooked, tiny_tokens):
    with pytest.raises(FeatureMismatchError, match="reads 16 numbers"):
        pf.sae.sae_metrics(random_sae(d_in=16), tiny_hooked, tiny_tokens, hook_name="blocks.0.mlp.hook_post")
    with pytest.raises(InputError, match="metadata name no hook.*hook_name="):
        pf.sae.sae_metrics(random_sae(d_in=16), tiny_hooked, tiny_tokens)
