"""`ParamFeatures`: directions, saving and loading, and what a saved folder refuses."""

import copy
import inspect
import json
import pickle
import re

import pytest
import torch

import param_features as pf
from param_features.errors import FeatureCountError, FingerprintError, SettingError, StoreError, UnknownParameterError
from param_features.gradients import GradientEngine
from param_features.params import select
from tests.adapters import zoo

W_K = "blocks.0.attn.W_K"


def subset_of(model, name):
    return select(pf.adapters.adapter_for(model).views(), name)


@pytest.fixture
def saved(tiny_features, tmp_path):
    tiny_features.save_pretrained(tmp_path / "w_k")
    return tmp_path / "w_k"


@pytest.fixture(scope="module")
def untied(tiny_hooked, tiny_tokens):
    params = [W_K, "blocks.0.attn.b_K"]
    fit = pf.FitSettings(steps=10, selection="top_k", rank=2)
    return pf.decompose(tiny_hooked, params, tiny_tokens, n_features=6, l0=2, fit=fit, progress=False)


def test_direction_has_the_parameters_shape_and_unit_norm(untied):
    found = untied.direction(3)
    assert {name: tuple(tensor.shape) for name, tensor in found.items()} == {W_K: (2, 16, 8), "blocks.0.attn.b_K": (2, 8)}
    assert sum(float(tensor.square().sum()) for tensor in found.values()) == pytest.approx(1)


def test_a_part_of_a_direction_has_every_name_that_the_parameter_has(tmp_path):
    model = zoo.hooked_llama()
    call = {"n_features": 3, "n_samples": 60, "steps": 2, "progress": False}
    features = pf.decompose(model, "blocks.0.attn.W_K", torch.randint(20, (12, 8)), **call)
    direction = features.direction(1)
    assert list(direction) == ["blocks.0.attn._W_K"]
    assert direction["blocks.0.attn.W_K"] is direction["blocks.0.attn._W_K"]
    with pytest.raises(
        UnknownParameterError, match=r"'blocks.0.attn.W_V' was not decomposed. These were: 'blocks.0.attn._W_K'"
    ):
        direction["blocks.0.attn.W_V"]
    features.save_pretrained(tmp_path)
    with pytest.raises(KeyError, match="was not decomposed"):
        pf.load(tmp_path).direction(1)["blocks.0.attn.W_K"]
    assert type(copy.copy(direction)) is type(pickle.loads(pickle.dumps(direction))) is dict


def test_direction_is_v_out_in_the_parameters_own_layout(tiny_features):
    left, right = tiny_features.v_out.factors[W_K]
    expected = (left[2] @ right[2].T).reshape(2, 8, 16).transpose(1, 2)  # (head o) i -> head i o
    torch.testing.assert_close(tiny_features.direction(2)[W_K], expected)


@pytest.mark.parametrize("feature", [-1, 6])
def test_unknown_feature_is_refused(tiny_features, feature):
    for call in (tiny_features.direction, tiny_features.top_examples, tiny_features.top_logits, tiny_features.show):
        with pytest.raises(FeatureCountError, match="numbered 0 to 5"):
            call(feature)


@pytest.mark.parametrize("which", ["tied", "untied"])
def test_loaded_features_are_the_saved_ones_bit_for_bit(which, tiny_features, untied, tiny_hooked, tiny_tokens, tmp_path):
    features = tiny_features if which == "tied" else untied
    features.save_pretrained(tmp_path)
    loaded = pf.load(tmp_path, model=tiny_hooked)
    for one, two in zip(
        features.v_in.tensors + features.v_out.tensors, loaded.v_in.tensors + loaded.v_out.tensors, strict=True
    ):
        assert torch.equal(one, two)
    assert (loaded.v_in is loaded.v_out) == (which == "tied")
    assert dict(loaded.metrics) == dict(features.metrics)
    assert loaded.threshold == features.threshold
    assert repr(loaded) == repr(features)
    assert torch.equal(loaded.activations(tiny_tokens[:3]), features.activations(tiny_tokens[:3]))
    assert torch.equal(loaded.codes(tiny_tokens[:3]), features.codes(tiny_tokens[:3]))
    assert loaded.top_examples(1, 3) == features.top_examples(1, 3)


def test_codes_of_a_linear_encoder_are_the_large_activations(untied, tiny_tokens):
    codes, acts = untied.codes(tiny_tokens[:5]), untied.activations(tiny_tokens[:5])
    assert torch.equal(codes, torch.where(acts.abs() >= untied.threshold, acts, 0.0))
    assert 0 < int((codes != 0).sum()) < codes.numel()


def test_codes_by_pursuit_rebuild_more_of_what_the_features_span_than_as_many_activations(tiny_hooked, tiny_tokens):
    """⟨reconstruction, 2 ∇ − reconstruction⟩, by how much a code lowers a sample's square error, needs no gradient."""
    features = pf.decompose(tiny_hooked, W_K, tiny_tokens, n_features=12, l0=2, steps=20, progress=False)
    codes, gram = features.codes(tiny_tokens), features.v_out.gram()
    acts = features.with_directions(features.v_out).activations(tiny_tokens)
    n_kept = int((codes != 0).sum())
    largest = acts * (acts.abs() >= acts.abs().flatten().topk(n_kept).values.min())
    lowered = [(2 * code * acts - (code @ gram) * code).sum(-1) for code in (codes, largest)]
    assert features.dictionary.encoder.n_rounds == 8
    assert lowered[0].min() >= -1e-9
    assert lowered[0].sum() > lowered[1].sum()
    assert 0 < n_kept < codes.numel()


@pytest.mark.parametrize("call", ["samples", "densities"])
def test_activations_and_codes_of_an_untied_fit_are_read_in_one_pass(call, tiny_hooked, tiny_tokens, monkeypatch):
    fit = pf.FitSettings(steps=5, batch_size=64)
    features = pf.decompose(tiny_hooked, W_K, tiny_tokens, n_features=6, l0=2, fit=fit, progress=False)
    assert features.v_in is not features.v_out and features.dictionary.code_directions is features.v_out
    n_passes, each_slot = [], GradientEngine.each_slot
    monkeypatch.setattr(GradientEngine, "each_slot", lambda *args: n_passes.append(1) or each_slot(*args))
    result = getattr(features, call)(tiny_tokens)
    assert len(n_passes) == 1
    monkeypatch.undo()
    codes = features.codes(tiny_tokens).flatten(0, 1)
    expected = (codes != 0).double().mean(0) if call == "densities" else codes
    torch.testing.assert_close(result if call == "densities" else result[1], expected, rtol=1e-9, atol=1e-12)


def test_without_a_model_directions_and_metrics_can_be_read(saved, tiny_features):
    loaded = pf.load(saved)
    torch.testing.assert_close(loaded.direction(0)[W_K], tiny_features.direction(0)[W_K])
    assert "control_pca" in repr(loaded)


def test_other_weights_are_refused_naming_the_parameter(saved, tiny_hooked):
    nudge = torch.zeros_like(tiny_hooked.blocks[0].attn.W_K)
    nudge[0, 0, 0] = 1e-9
    refused = pytest.raises(FingerprintError, match=r"'blocks.0.attn.W_K' has other weights")
    with subset_of(tiny_hooked, W_K).edited({W_K: nudge}), refused:
        pf.load(saved, model=tiny_hooked)
    pf.load(saved, model=tiny_hooked)


def test_weights_outside_the_subset_do_not_matter_to_the_fingerprint(saved, tiny_hooked):
    other = "blocks.1.attn.W_K"
    with subset_of(tiny_hooked, other).edited({other: torch.ones_like(tiny_hooked.blocks[1].attn.W_K)}):
        pf.load(saved, model=tiny_hooked)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:-20])


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edit_json(path):
    path.write_text(path.read_text().replace('"dead": ', '"dead": 1'))


def other_version(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("features.safetensors", cut_short, "cut short, edited"),
        ("features.safetensors", flip_a_byte, "cut short, edited"),
        ("features.safetensors", lambda path: path.unlink(), "holds no features.safetensors"),
        ("config.json", cut_short, "is not JSON"),
        ("config.json", edit_json, "does not match its own checksum"),
        ("config.json", other_version, "format version 99; this library reads version 1"),
        ("config.json", lambda path: path.write_text("{}"), "does not describe saved features"),
        ("config.json", lambda path: path.unlink(), "holds no config.json"),
    ],
)
def test_a_damaged_folder_is_refused(saved, name, damage, message):
    damage(saved / name)
    with pytest.raises(StoreError, match=message):
        pf.load(saved)


def test_an_interrupted_save_leaves_the_old_one(saved, tiny_features, untied, monkeypatch):
    from param_features.files import disk

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(disk.os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        untied.save_pretrained(saved)
    monkeypatch.undo()
    assert repr(pf.load(saved)) == repr(tiny_features)


def test_files_hold_data_only(saved):
    assert {path.name for path in saved.iterdir()} == {"config.json", "features.safetensors"}
    assert json.loads((saved / "config.json").read_text())["format_version"] == 1


def test_a_custom_divergence_must_be_given_again(classifier, images, tmp_path):
    def gap(output, reference):
        return (output - reference).abs().sum(-1)

    call = {"inputs": images, "n_features": 4, "l0": 2, "steps": 5, "progress": False}
    features = pf.decompose(classifier, "classifier.weight", divergence=gap, **call)
    features.save_pretrained(tmp_path)
    with pytest.raises(SettingError, match=r"your own divergence 'gap'.*divergence=gap"):
        pf.load(tmp_path, model=classifier)
    loaded = pf.load(tmp_path, model=classifier, divergence=gap)
    torch.testing.assert_close(loaded.activations(inputs=images[:2]), features.activations(inputs=images[:2]))


def test_the_class_lists_every_method_that_users_call():
    documented = set(re.findall(r"`(\w+)`", inspect.getdoc(pf.ParamFeatures))) - {"Fitted"}
    facade = [base for base in pf.ParamFeatures.__mro__ if base.__module__.startswith("param_features.features.")]
    defined = {name for base in facade for name in vars(base) if not name.startswith("_")} - {"of"}
    assert defined <= documented
    assert all(callable(getattr(pf.ParamFeatures, name)) for name in documented)
    assert documented - defined == {"direction", "save_pretrained"}
