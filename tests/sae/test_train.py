"""Training an SAE in one call: the recipe, what it finds, and what it leaves alone."""

import sys

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import FeatureCountError, MissingExtraError, NonFiniteError, SettingError, UnknownHookError
from param_features.sae import train
from param_features.sae.resampling import resample, reset_moments
from tests.saes import sae_library
from tests.test_restoration import assert_same, snapshot

HOOK = "blocks.0.hook_resid_post"
QUICK = {"n_features": 12, "l0": 2, "n_epochs": 3, "batch_size": 64, "progress": False}


@pytest.fixture(autouse=True, scope="module")
def _library():
    return sae_library()


class Planted(nn.Module):
    """Passes vectors on, so that an SAE may be trained on what is planted in them."""

    def __init__(self):
        super().__init__()
        self.place, self.out = nn.Identity(), nn.Linear(20, 2)

    def forward(self, x):
        return self.out(self.place(x))


@pytest.fixture(scope="module")
def planted():
    """24 directions in 20 numbers, of which two or so make up each sample, and an offset."""
    generator = torch.Generator().manual_seed(0)
    truth = nn.functional.normalize(torch.randn(24, 20, generator=generator), dim=1)
    is_on = torch.rand(6000, 24, generator=generator) < 1.6 / 24
    codes = is_on * (0.5 + torch.rand(6000, 24, generator=generator))
    return truth, codes @ truth + 3


def recovered(rows, truth):
    """Mean over true directions of the largest cosine with a row."""
    return float((nn.functional.normalize(truth, dim=1) @ nn.functional.normalize(rows, dim=1).T).max(1).values.mean())


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_planted_directions_are_found(planted, architecture):
    truth, x = planted
    l0 = 2 if architecture == "topk" else 1.6
    call = {"inputs": x, "n_features": 24, "l0": l0, "architecture": architecture, "batch_size": 128, "progress": False}
    sae = pf.sae.train_sae(Planted(), "place", n_epochs=20, **call)
    untrained = pf.sae.train_sae(Planted(), "place", n_epochs=0.01, **call)
    shuffled = truth[:, torch.randperm(20, generator=torch.Generator().manual_seed(1))]
    assert recovered(sae.W_dec, truth) > 0.95
    assert recovered(untrained.W_dec, truth) < 0.8
    assert recovered(sae.W_dec, shuffled) < 0.8
    metrics = pf.sae.sae_metrics(sae, Planted(), inputs=x)
    assert metrics["l0"] == pytest.approx(l0, rel=0.1)
    assert metrics["mse"] < 0.25 * pf.sae.sae_metrics(untrained, Planted(), inputs=x)["mse"]
    assert metrics["dead"] <= 1


def test_rows_keep_unit_norm_and_the_bias_starts_at_the_mean(planted):
    _, x = planted
    sae = pf.sae.train_sae(Planted(), "place", inputs=x, **QUICK | {"n_epochs": 0.01, "lr": 1e-12})
    torch.testing.assert_close(sae.b_dec, x.mean(0), rtol=1e-4, atol=1e-4)
    trained = pf.sae.train_sae(Planted(), "place", inputs=x, **QUICK)
    torch.testing.assert_close(trained.W_dec.norm(dim=1), torch.ones(12))
    assert (trained.W_enc.T - trained.W_dec).abs().max() > 0.05  # untied
    assert trained.cfg.apply_b_dec_to_input


def test_adam_sees_no_gradient_along_a_row(planted, monkeypatch):
    _, x = planted
    seen, drop = [], train._drop_parallel

    def watched(sae):
        rows = sae.W_dec.detach()
        before = float((sae.W_dec.grad * rows).sum(1).abs().max())
        drop(sae)
        seen.append((before, float((sae.W_dec.grad * rows).sum(1).abs().max())))

    monkeypatch.setattr(train, "_drop_parallel", watched)
    pf.sae.train_sae(Planted(), "place", inputs=x[:640], **QUICK)
    assert len(seen) == 30
    assert max(before for before, _ in seen) > 1e-2
    assert max(after for _, after in seen) < 1e-5


def test_dead_features_are_resampled_and_live_again(planted, monkeypatch):
    """Features that start pointing away from every sample stay dead, unless they are resampled."""
    _, x = planted
    build = train._training_sae

    def dying(*args):
        sae = build(*args)
        with torch.no_grad():
            sae.b_enc[:6] = -100
        return sae

    monkeypatch.setattr(train, "_training_sae", dying)
    call = {"inputs": x, "n_features": 24, "l0": 1.6, "n_epochs": 20, "batch_size": 128, "progress": False}
    saved = pf.sae.train_sae(Planted(), "place", **call)
    monkeypatch.setattr(train, "resample", lambda *_: None)
    left = pf.sae.train_sae(Planted(), "place", **call)
    assert pf.sae.sae_metrics(saved, Planted(), inputs=x)["dead"] <= 1
    assert pf.sae.sae_metrics(left, Planted(), inputs=x)["dead"] >= 6


def test_resampling_points_at_what_is_rebuilt_worst():
    library = sae_library()
    sae = library.TopKTrainingSAE(library.TopKTrainingSAEConfig(d_in=4, d_sae=3, k=1, rescale_acts_by_decoder_norm=False))
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(4)[:3])
        sae.W_enc.copy_(2 * torch.eye(4)[:, :3])
        sae.b_enc.fill_(0.3)
    optimizer = torch.optim.Adam(sae.parameters())
    sae.encode(torch.randn(5, 4)).sum().backward()
    sae.W_dec.grad = torch.ones_like(sae.W_dec)
    optimizer.step()
    with torch.no_grad():
        sae.b_enc.fill_(0)
        sae.b_dec.fill_(0)
    before = {name: value.detach().clone() for name, value in sae.named_parameters()}
    acts = torch.zeros(50, 4)
    acts[7, 3] = -5  # the only sample that is not rebuilt
    dead = torch.tensor([1])
    resample(sae, acts, dead, torch.Generator().manual_seed(0))
    reset_moments(optimizer, sae, dead)
    torch.testing.assert_close(sae.W_dec[1].detach(), torch.tensor([0.0, 0, 0, -1]), atol=1e-2, rtol=0)
    living = before["W_enc"][:, [0, 2]].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc[:, 1].detach(), living * torch.tensor([0.0, 0, 0, -1]), atol=3e-2, rtol=0)
    for name, axis in (("W_dec", 0), ("W_enc", 1)):
        keep = torch.tensor([0, 2])
        assert torch.equal(getattr(sae, name).index_select(axis, keep), before[name].index_select(axis, keep))
    state = optimizer.state[sae.W_dec]
    assert state["exp_avg"][1].abs().max() == 0
    assert state["exp_avg"][[0, 2]].abs().min() > 0


def test_the_same_seed_gives_the_same_bits_and_the_model_stays_as_it_was(tiny_hooked, tiny_tokens, capfd):
    before = snapshot(tiny_hooked)
    one, same = (pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK) for _ in range(2))
    torch.rand(3)
    after = snapshot(tiny_hooked) | {"rng": before["rng"]}
    assert_same(before, after)
    other = pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK, seed=1)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, same.state_dict()[name]), name
    assert not torch.equal(one.W_dec, other.W_dec)
    assert capfd.readouterr().err == ""


def test_the_global_generator_is_left_alone(tiny_hooked, tiny_tokens):
    before = torch.get_rng_state()
    pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_it_is_saved_and_loaded_by_sae_lens(tiny_hooked, tiny_tokens, architecture, tmp_path):
    sae = pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, architecture=architecture, **QUICK)
    sae.save_model(tmp_path)
    loaded = sae_library().SAE.load_from_disk(tmp_path)
    acts = torch.randn(20, 16)
    assert torch.equal(loaded.encode(acts), sae.encode(acts))
    assert torch.equal(loaded.decode(loaded.encode(acts)), sae.decode(sae.encode(acts)))
    about = loaded.cfg.metadata
    assert (about.hook_name, about.context_size, about.n_training_samples) == (HOOK, 10, 400)
    assert about.param_features["n_features"] == 12
    assert about.model_name == tiny_hooked.cfg.model_name


def test_padding_is_no_sample(tiny_hooked):
    texts = [[1, 2, 3, 4, 5], [6, 7, 8]] * 10
    sae = pf.sae.train_sae(tiny_hooked, HOOK, texts, **QUICK)
    assert sae.cfg.metadata.n_training_samples == 80


def test_heads_are_joined(tiny_hooked, tiny_tokens):
    sae = pf.sae.train_sae(tiny_hooked, "blocks.0.attn.hook_z", tiny_tokens, **QUICK)
    assert sae.cfg.d_in == 16
    assert pf.sae.sae_metrics(sae, tiny_hooked, tiny_tokens)["mse"] < 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_features": 0}, FeatureCountError, "n_features=0"),
        ({"l0": 13}, FeatureCountError, "l0=13.*at most n_features"),
        ({"l0": 1.5, "architecture": "topk"}, SettingError, "whole number.*'batchtopk'"),
        ({"architecture": "jump"}, SettingError, "'jump' is unknown. Accepted: 'batchtopk', 'topk'"),
        ({"lr": 0}, SettingError, "lr=0 must be above 0"),
        ({"n_epochs": 0}, SettingError, "n_epochs=0"),
        ({"batch_size": 0}, SettingError, "batch_size=0"),
    ],
)
def test_settings_out_of_range_are_refused(tiny_hooked, tiny_tokens, changes, error, message):
    with pytest.raises(error, match=message):
        pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK | changes)


def test_an_unknown_place_is_refused(tiny_hooked, tiny_tokens):
    with pytest.raises(UnknownHookError, match="hook_resid_post"):
        pf.sae.train_sae(tiny_hooked, "blocks.0.resid_post", tiny_tokens, **QUICK)


def test_a_missing_library_names_the_install(tiny_hooked, tiny_tokens, monkeypatch):
    monkeypatch.setitem(sys.modules, "sae_lens", None)
    with pytest.raises(MissingExtraError, match=r"param_features\[sae\]"):
        pf.sae.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK)


def test_a_training_that_diverges_is_refused(tiny_hooked, tiny_tokens):
    with pytest.raises(NonFiniteError, match="NaN or infinite at lr="):
        train.train_sae(tiny_hooked, HOOK, tiny_tokens, **QUICK | {"lr": 1e30})
