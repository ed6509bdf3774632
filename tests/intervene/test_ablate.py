"""Ablation's three rules against their definitions, and what lies outside the features' span."""

import pytest
import torch

from param_features.errors import FeatureCountError, SearchError, SettingError

W_K = "blocks.0.attn.W_K"


def dense(features):
    return torch.stack([features.direction(k)[W_K].flatten().double() for k in range(features.n_features)])


def weight(model):
    return model.blocks[0].attn.W_K.detach().double().clone()


def test_weight_leaves_no_overlap_with_the_chosen_directions(tiny_hooked, tiny_features):
    v, own = dense(tiny_features), weight(tiny_hooked).flatten()
    assert (v[[1, 4]] @ own).abs().min() > 1e-3
    with tiny_features.ablate([1, 4]):
        left = weight(tiny_hooked).flatten()
    assert (v[[1, 4]] @ left).abs().max() < 1e-6
    projection = torch.linalg.lstsq(v[[1, 4]].T, own.unsqueeze(1)).solution
    torch.testing.assert_close(left, own - (v[[1, 4]].T @ projection)[:, 0], rtol=1e-5, atol=1e-6)


def test_features_and_the_rest_are_the_weight(tiny_hooked, tiny_features):
    v, rest, c = dense(tiny_features), tiny_features.residual()[W_K], tiny_features.weight_coefficients()
    torch.testing.assert_close(rest.double().flatten() + c @ v, weight(tiny_hooked).flatten(), rtol=1e-5, atol=1e-6)
    assert (v @ rest.double().flatten()).abs().max() < 1e-6


def test_dependent_directions_have_the_shortest_coefficients(tiny_hooked, tiny_features):
    """A feature given twice over shares its coefficient; nothing explodes."""

    twice = tiny_features.with_directions(tiny_features.v_out.rows([0, 0, 1]), tiny_features.v_in.rows([0, 0, 1]))
    c = twice.weight_coefficients()
    alone = tiny_features.with_directions(tiny_features.v_out.rows([0, 1]), tiny_features.v_in.rows([0, 1]))
    torch.testing.assert_close(c[0], c[1])
    torch.testing.assert_close(c[0] + c[1], alone.weight_coefficients()[0])
    torch.testing.assert_close(twice.residual()[W_K], alone.residual()[W_K], rtol=1e-4, atol=1e-6)


def test_noise_has_the_norm_that_was_asked_for_and_its_own_generator(tiny_hooked, tiny_features):
    state = torch.get_rng_state()
    drawn = [tiny_features.ablate(range(6), rule="noise", scale=0.2, seed=s).coefficients for s in range(400)]
    assert torch.equal(torch.get_rng_state(), state)
    squares = torch.tensor([list(c.values()) for c in drawn]).square().sum(1)
    assert float(squares.mean().sqrt()) == pytest.approx(0.2 * float(weight(tiny_hooked).norm()), rel=0.05)
    assert drawn[3] == tiny_features.ablate(range(6), rule="noise", scale=0.2, seed=3).coefficients
    assert drawn[3] != drawn[4]


def mean_divergence(features, model, tokens, chosen):
    with torch.no_grad():
        output = model(tokens).flatten(0, 1)[chosen]
    values = [features.divergence.value(output, r.expand_as(output)) for r in features.references.to(output)]
    return torch.stack(values).mean()


def test_search_stops_where_the_divergence_has_fallen_to_the_target(tiny_hooked, tiny_features, tiny_tokens):
    tokens, features = tiny_tokens[:30], [0, 3]
    best = [e for k in features for e in tiny_features.top_examples(k, 20, tokens=tokens)]
    chosen = torch.tensor(sorted({e.row * tokens.shape[1] + e.position for e in best}))
    before = mean_divergence(tiny_features, tiny_hooked, tokens, chosen)
    found = tiny_features.ablate(features, rule="search", tokens=tokens, target=0.98)
    with found:
        after = mean_divergence(tiny_features, tiny_hooked, tokens, chosen)
    assert after <= 0.98 * before
    with tiny_features.steer({k: 0.98 * delta for k, delta in found.coefficients.items()}):
        assert mean_divergence(tiny_features, tiny_hooked, tokens, chosen) > 0.98 * before


def test_search_steps_against_the_mean_activations(tiny_features, tiny_tokens):
    tokens = tiny_tokens[:30]
    best = [e for k in (0, 3) for e in tiny_features.top_examples(k, 20, tokens=tokens)]
    where = sorted({(e.row, e.position) for e in best})
    acts = tiny_features.activations(tokens)
    mean = torch.stack([acts[row, position] for row, position in where]).mean(0)[[0, 3]]
    found = torch.tensor(list(tiny_features.ablate([0, 3], rule="search", tokens=tokens, target=0.98).coefficients.values()))
    torch.testing.assert_close(found / found.norm(), (-mean / mean.norm()).to(found), rtol=1e-3, atol=1e-4)


def test_search_heeds_padding(tiny_features, tiny_tokens):
    """Rows padded on the right: the same samples are found, and so the same step."""
    tokens = tiny_tokens[:30]
    padded = torch.cat([tokens, torch.zeros(30, 2, dtype=tokens.dtype)], 1)
    mask = torch.cat([torch.ones_like(tokens), torch.zeros(30, 2, dtype=tokens.dtype)], 1)
    call = {"rule": "search", "target": 0.98}
    plain = tiny_features.ablate([0, 3], tokens=tokens, **call).coefficients
    found = tiny_features.ablate([0, 3], tokens={"input_ids": padded, "attention_mask": mask}, **call).coefficients
    assert found == pytest.approx(plain, rel=1e-3)


def test_a_target_out_of_reach_is_an_error_that_names_the_lowest(tiny_features, tiny_tokens):
    with pytest.raises(SearchError, match=r"falls to .* at most"):
        tiny_features.ablate([0], rule="search", tokens=tiny_tokens[:10], target=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "help"),
    [
        ({"features": []}, FeatureCountError, "No feature is given"),
        ({"features": [6]}, FeatureCountError, "numbered 0 to 5"),
        ({"features": [0], "rule": "serach"}, SettingError, "nearest: 'search'"),
        ({"features": [0], "rule": "noise", "scale": 0.0}, SettingError, "must be positive"),
        ({"features": [0], "rule": "search", "target": 1.0}, SettingError, r"outside \(0, 1\)"),
    ],
)
def test_wrong_settings_are_refused(tiny_features, call, error, help):
    with pytest.raises(error, match=help):
        tiny_features.ablate(**call)
