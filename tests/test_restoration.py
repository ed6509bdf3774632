"""The model is left exactly as it was: after success, after an error in the middle of the fit, after Ctrl-C."""

import random

import numpy
import pytest
import torch

import param_features as pf
from param_features.fit.training import Trainer
from param_features.gradients import GradientStore

QUICK = {"n_features": 6, "l0": 2, "steps": 20, "progress": False}


def snapshot(model):
    """Everything about a model and the process that a run could disturb."""
    hooks = [
        [len(table) for table in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks, m._backward_pre_hooks)]
        for m in model.modules()
    ]
    return {
        "objects": [(name, id(parameter)) for name, parameter in model.named_parameters()],
        "weights": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grads": [parameter.grad for parameter in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": hooks,
        "rng": torch.get_rng_state(),
        "random": (random.getstate(), str(numpy.random.get_state())),
        "attention": (
            torch.backends.mha.get_fastpath_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "grad_mode": torch.is_grad_enabled(),
    }


def assert_same(before, after):
    for name, value in before["weights"].items():
        assert torch.equal(value, after["weights"][name]), name
    assert torch.equal(before["rng"], after["rng"])
    for key in before.keys() - {"weights", "rng"}:
        assert before[key] == after[key], key


@pytest.fixture
def odd_model(tiny_hooked):
    """Mixed modes, mixed gradient flags, a user's own hook: nothing may be assumed to be uniform."""
    tiny_hooked.train()
    tiny_hooked.blocks[0].attn.eval()
    tiny_hooked.blocks[0].attn.W_K.requires_grad_(False)
    handle = tiny_hooked.blocks[1].hook_resid_post.register_forward_hook(lambda *_: None)
    yield tiny_hooked
    handle.remove()
    tiny_hooked.blocks[0].attn.W_K.requires_grad_(True)
    tiny_hooked.eval()


@pytest.mark.parametrize("params", ["blocks.0.attn.W_K", "pos_embed.W_pos"], ids=["tapped", "watched"])
class TestModelIsLeftAsItWas:
    def test_after_success(self, odd_model, tiny_tokens, params):
        before = snapshot(odd_model)
        features = pf.decompose(odd_model, params, tiny_tokens, **QUICK)
        features.activations(tiny_tokens[:2], route="jvp")
        features.activations(tiny_tokens[:2], route="vjp")
        features.top_logits(0)
        assert_same(before, snapshot(odd_model))

    @pytest.mark.parametrize(("place", "method"), [(Trainer, "step"), (GradientStore, "add")], ids=["fit", "harvest"])
    def test_after_an_error(self, odd_model, tiny_tokens, params, monkeypatch, place, method):
        before, calls, original = snapshot(odd_model), [], getattr(place, method)

        def failing(*args, **kwargs):
            calls.append(1)
            if len(calls) == 3:
                raise ZeroDivisionError
            return original(*args, **kwargs)

        monkeypatch.setattr(place, method, failing)
        with pytest.raises(ZeroDivisionError):
            pf.decompose(odd_model, params, tiny_tokens, **QUICK)
        assert_same(before, snapshot(odd_model))

    def test_after_ctrl_c_in_the_fit_and_features_come_back(self, odd_model, tiny_tokens, params, monkeypatch, capsys):
        before, step = snapshot(odd_model), Trainer.step

        def interrupted(trainer):
            if trainer.n_steps == 5:
                raise KeyboardInterrupt
            return step(trainer)

        monkeypatch.setattr(Trainer, "step", interrupted)
        features = pf.decompose(odd_model, params, tiny_tokens, **{**QUICK, "progress": True})
        assert features.config["steps_done"] == 5
        assert "control_pca" in features.metrics
        assert "Interrupted after 5 of 20 steps" in capsys.readouterr().err
        assert_same(before, snapshot(odd_model))

    def test_after_ctrl_c_in_the_harvest(self, odd_model, tiny_tokens, params, monkeypatch):
        before = snapshot(odd_model)

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(GradientStore, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pf.decompose(odd_model, params, tiny_tokens, **QUICK)
        assert_same(before, snapshot(odd_model))

    def test_after_the_models_own_error(self, odd_model, tiny_tokens, params):
        before, n_calls = snapshot(odd_model), []

        def fail_later(module, args, output):
            n_calls.append(1)
            if len(n_calls) > 6:
                raise ZeroDivisionError

        handle = odd_model.ln_final.register_forward_hook(fail_later)
        try:
            with pytest.raises(ZeroDivisionError):
                pf.decompose(odd_model, params, tiny_tokens, **QUICK, harvest=pf.HarvestSettings(batch_size=4))
        finally:
            handle.remove()
        assert_same(before, snapshot(odd_model))
