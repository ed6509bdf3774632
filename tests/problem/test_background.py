"""Features for a target that leave a background alone: planted circuits, records, and what is refused."""

import pytest
import torch

import param_features as pf
from benchmarks import toys
from param_features.errors import FeatureCountError, InputError, SampleCountError, SettingError

W_K = "blocks.0.attn.W_K"
QUICK = {"n_features": 4, "l0": 1, "steps": 10, "progress": False}


def drawn(n_rows: int, n_pos: int, seed: int = 5) -> torch.Tensor:
    return torch.randint(1, 20, (n_rows, n_pos), generator=torch.Generator().manual_seed(seed))


def sparse(markers: torch.Tensor, probabilities: list[float], generator: torch.Generator) -> torch.Tensor:
    """Inputs that hold each of ten markers with its own probability, at a size in [1, 2], and noise."""
    is_there = torch.rand(600, 10, generator=generator) < torch.tensor(probabilities)
    sizes = is_there * (1 + torch.rand(600, 10, generator=generator))
    return sizes @ markers + 0.02 * torch.randn(600, markers.shape[1], generator=generator)


def planted(seed: int, weight: float) -> tuple[pf.ParamFeatures, torch.Tensor]:
    """Circuits 0 and 1 are the target's alone, 5 and 6 are in both, 7 to 9 the background's; with |cosine| to each circuit.

    Three of the five features are the background's, so that two are left for the target's four circuits.
    """
    toy, generator = toys.planted_circuits(seed=1), torch.Generator().manual_seed(seed)
    markers = torch.nn.functional.normalize(toy.truth.factors["encode.weight"][1][:, :, 0], dim=1)
    target = sparse(markers, [0.2, 0.2, 0, 0, 0, 0.3, 0.3, 0, 0, 0], generator)
    other = pf.Background(sparse(markers, [0.0] * 5 + [0.2] * 5, generator), weight=weight, n_features=3)
    call = {"n_features": 5, "l0": 1, "steps": 120, "divergence": "se", "reference": torch.zeros(20), "seed": seed}
    features = pf.decompose(toy.model, list(toy.params), inputs=target, background=other, progress=False, **call)
    return features, features.v_out.joined(toy.truth).gram()[:5, 5:].abs()


def test_the_target_s_features_are_the_circuits_that_the_background_lacks():
    features, cosines = planted(0, 10.0)
    assert set(cosines[:2].argmax(1).tolist()) == {0, 1}
    assert cosines[:2].max(1).values.min() > 0.6
    assert set(cosines[2:].argmax(1).tolist()) <= {5, 6, 7, 8, 9}
    assert features.on_target[:2].min() > 0.8 > features.on_target[2:].max()
    assert features.metrics["off_target"] < 0.5 * features.metrics["off_target_alone"]
    assert features.metrics["off_target"] < 0.3 * features.metrics["off_target_random"]
    assert features.metrics["background_error"] < features.metrics["background_alone"]
    assert features.metrics["background_random"] > 0.9


def test_without_a_penalty_they_are_the_strongest_circuits_wherever_they_act():
    features, cosines = planted(0, 0.0)
    assert set(cosines[:2].argmax(1).tolist()) <= {5, 6}
    assert features.metrics["off_target"] > 0.7 * features.metrics["off_target_alone"]


def test_the_fit_without_background_is_the_one_that_the_user_would_get(tiny_hooked):
    call = {**QUICK, "n_samples": 200}
    tokens, other = drawn(40, 8, 1), drawn(60, 6, 2)
    alone = pf.decompose(tiny_hooked, W_K, tokens, **call)
    beside = pf.decompose(tiny_hooked, W_K, tokens, background=other, **call)
    assert beside.metrics["error_alone"] == alone.metrics["reconstruction_error"]
    assert beside.metrics["control_pca"] == alone.metrics["control_pca"]


def test_pairs_and_a_background_together_are_saved_and_loaded(tiny_hooked, tmp_path):
    pairs, other = (drawn(40, 6, 1), drawn(40, 7, 2)), drawn(60, 9, 3)
    features = pf.decompose(tiny_hooked, W_K, reference=pairs, background=other, **QUICK)
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=tiny_hooked)
    assert torch.equal(loaded.on_target, features.on_target)
    assert loaded.on_target.shape == (4,)
    assert dict(loaded.metrics) == dict(features.metrics)
    assert loaded.config["background"]["n_target"] == 2
    torch.testing.assert_close(loaded.codes(other), features.codes(other), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("selection", ["pursuit", "top_k", "l1"])
@pytest.mark.parametrize("format", ["matrix", "tucker"])
def test_every_encoder_and_format_takes_a_background(tiny_hooked, selection, format):
    call = {**QUICK, "fit": pf.FitSettings(selection=selection, format=format)}
    tokens, other = drawn(40, 8, 1), drawn(60, 6, 2)
    features = pf.decompose(tiny_hooked, W_K, tokens, background=other, **call)
    assert (features.v_in is features.v_out) == (selection == "l1")
    assert features.n_features == len(features.on_target) == 4


def test_all_features_may_be_the_target_s(tiny_hooked):
    other = pf.Background(drawn(60, 6, 2), n_features=0, n_samples=100)
    features = pf.decompose(tiny_hooked, W_K, drawn(40, 8, 1), background=other, **QUICK)
    assert features.config["background"]["n_target"] == 4
    assert features.config["background"]["n_samples"] == 90


OTHER = drawn(30, 6, 2)
REFUSED = [
    (drawn(30, 99), InputError, "background=: tokens have 99 positions"),
    (drawn(1, 6)[:0], InputError, r"background=: tokens have shape \(0, 6\)"),
    (pf.Background(OTHER, n_features=4), FeatureCountError, "n_features=4 of the 4 features asked for.*0 to 3"),
    (pf.Background(OTHER, n_features=-1), FeatureCountError, "n_features=-1 of the 4"),
    (OTHER[:2, :1], SampleCountError, "2 sequences"),
]


@pytest.mark.parametrize(("background", "error", "message"), REFUSED, ids=[message[:30] for _, _, message in REFUSED])
def test_refused_by_name(tiny_hooked, background, error, message):
    with pytest.raises(error, match=message):
        pf.decompose(tiny_hooked, W_K, drawn(40, 8), background=background, **QUICK)


def test_refused_settings(tiny_hooked, tiny_features):
    with pytest.raises(SettingError, match="weight=-1"):
        pf.Background(OTHER, weight=-1)
    with pytest.raises(SettingError, match="method='hessian'.*method='l3d'"):
        pf.decompose(tiny_hooked, W_K, drawn(40, 8), background=OTHER, method="hessian", **QUICK)
    with pytest.raises(SettingError, match="fitted without one.*background=tokens"):
        _ = tiny_features.on_target
