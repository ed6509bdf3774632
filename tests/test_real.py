"""The main call on a real trained language model and real stories, shorter than the documentation's."""

import pytest
import torch

import param_features as pf

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")]


@pytest.fixture(scope="module")
def real(stories):
    return stories.load_hooked(), stories.load_tokens()


@pytest.fixture(scope="module")
def features(real):
    model, tokens = real
    call = {"n_features": 100, "l0": 5, "seed": 0, "n_samples": 12_000, "steps": 300, "progress": False}
    return pf.decompose(model, params="blocks.2.attn.W_K", tokens=tokens, **call)


def test_error_is_low_held_out_and_below_every_control(features):
    metrics = features.metrics
    assert metrics["reconstruction_error"] <= 0.42
    assert metrics["reconstruction_error"] < 0.9 * metrics["control_pca"]
    assert metrics["control_random"] > 0.9
    assert metrics["control_svd_w"] > 0.9
    assert metrics["dead"] == 0
    assert metrics["l0"] == 5
    assert metrics["training_error"] > 0.9 * metrics["reconstruction_error"]


def test_the_spoken_name_means_the_grouped_matrix(features, real):
    model, _ = real
    assert list(features.params) == ["blocks.2.attn._W_K"]
    direction = features.direction(0)
    assert direction["blocks.2.attn._W_K"].shape == model.blocks[2].attn._W_K.shape
    assert direction["blocks.2.attn.W_K"] is direction["blocks.2.attn._W_K"]


def test_features_fire_on_few_tokens_and_read_like_something(features):
    """A feature's ten strongest samples share their next token more often than ten random samples do."""
    repeats = []
    for feature in range(0, features.n_features, 4):
        following = [example.next_token for example in features.top_examples(feature, 10)]
        repeats.append(max(following.count(token) for token in following))
    generator = torch.Generator().manual_seed(0)
    tokens = features.examples.tokens[:, 1:].flatten()
    chance = []
    for _ in range(100):
        drawn = tokens[torch.randint(len(tokens), (10,), generator=generator)].tolist()
        chance.append(max(drawn.count(token) for token in drawn))
    assert sum(repeats) / len(repeats) > 1.5 * sum(chance) / len(chance)


def test_a_colleague_loads_what_was_saved(features, real, tmp_path):
    model, tokens = real
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=model)
    assert torch.equal(loaded.activations(tokens[:2]), features.activations(tokens[:2]))
    torch.testing.assert_close(
        loaded.activations(tokens[:1], route="jvp"), loaded.activations(tokens[:1], route="vjp"), rtol=1e-3, atol=1e-4
    )
