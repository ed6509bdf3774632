"""Steering with where= acts where a changed weight acts: users' hooks and traces read and replace the same outputs."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import ModelStateError
from tests.adapters.zoo import D_VOCAB, booted, hf_gpt2, hooked
from tests.models import randomised

TOKENS = torch.randint(4, D_VOCAB, (12, 6), generator=torch.Generator().manual_seed(3))
FEW = TOKENS[:2]
STEPS = {0: 3.0, 2: -2.0}
EVERYWHERE = [True, True]

PLAIN = {
    "plain": lambda: randomised(nn.Sequential(nn.Embedding(D_VOCAB, 6), nn.Linear(6, 6), nn.Linear(6, D_VOCAB))).double(),
    "hf": hf_gpt2,
    "hooked": hooked,
    "hooked norm": hooked,
    "bridge": lambda: booted(hf_gpt2),
    "bridge norm": lambda: booted(hf_gpt2),
}
PARAMS = {
    "plain": "1.weight",
    "hf": "transformer.h.0.attn.c_attn.weight[k]",
    "hooked": "blocks.0.attn.W_K",
    "hooked norm": "blocks.0.ln1.b",
    "bridge": "blocks.0.attn.W_K",
    "bridge norm": "blocks.0.ln1.b",
}
LAYERS = {
    "plain": lambda model: model[1],
    "hf": lambda model: model.transformer.h[0].attn.c_attn,
    "hooked": lambda model: model.blocks[0].attn.hook_k,
    "hooked norm": lambda model: model.blocks[0].ln1,
    "bridge": lambda model: model.blocks[0].attn.k._original_component,
    "bridge norm": lambda model: model.blocks[0].ln1.hook_out,
}
LENS = ("hooked", "bridge")  # with a hook point of TransformerLens' own at the layer's output


@cache
def subject(kind: str) -> tuple[Any, pf.ParamFeatures]:
    if kind.startswith(LENS):
        pytest.importorskip("transformer_lens")
    model = PLAIN[kind]()
    return model, decomposed(model, PARAMS[kind])


def decomposed(model, param: str) -> pf.ParamFeatures:
    return pf.decompose(model, param, TOKENS, n_features=4, l0=2, steps=4, progress=False)


def logits(model, tokens=FEW):
    found = model(tokens)
    return getattr(found, "logits", found)


def by_both(features: pf.ParamFeatures, use: Callable) -> None:
    """What `use` gives is the same under changed weights and under where=, and other without steering."""
    plain = use()
    with features.steer(STEPS):
        expected = use()
    with features.steer(STEPS, where=EVERYWHERE):
        found = use()
    torch.testing.assert_close(found, expected)
    assert any(not torch.allclose(one, other) for one, other in zip(found, plain, strict=True)), "nothing is shown"
    for one, other in zip(use(), plain, strict=True):
        assert torch.equal(one, other)


HOOKS = {
    "sees": lambda module, args, output: None,
    "scales": lambda module, args, output: output * 0.5,
    "replaces": lambda module, args, output: output.flip(0),
}


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("does", HOOKS)
@pytest.mark.parametrize("kind", PARAMS)
@torch.no_grad()
def test_a_hook_sees_and_changes_the_steered_output(kind, does, prepend):
    model, features = subject(kind)
    seen: list[torch.Tensor] = []

    def hook(module, args, output):
        seen.append(output)
        return HOOKS[does](module, args, output)

    def added():
        return LAYERS[kind](model).register_forward_hook(hook, prepend=prepend)

    def hooked_inside():
        handle = added()
        try:
            return logits(model), seen.pop()
        finally:
            handle.remove()

    by_both(features, hooked_inside)
    handle = added()
    try:
        by_both(features, lambda: (logits(model), seen.pop()))
    finally:
        handle.remove()


@pytest.mark.parametrize("prepend", [False, True])
@pytest.mark.parametrize("kind", LENS)
@torch.no_grad()
def test_a_hook_point_sees_and_changes_the_steered_output(kind, prepend):
    model, features = subject(kind)
    seen: list[torch.Tensor] = []

    def hook(tensor, hook):
        seen.append(tensor)
        return tensor * 0.5

    def use():
        model.hook_dict["blocks.0.attn.hook_k"].add_hook(hook, **({"prepend": True} if prepend else {}))
        try:
            return logits(model), seen.pop()
        finally:
            model.reset_hooks()

    by_both(features, use)


@pytest.mark.parametrize("kind", ["plain", "hf", "bridge"])
@torch.no_grad()
def test_what_a_hook_makes_of_the_input_is_what_the_features_act_on(kind):
    model, features = subject(kind)

    def use():
        handle = LAYERS[kind](model).register_forward_pre_hook(lambda module, args: (args[0] * 1.5,))
        try:
            return (logits(model),)
        finally:
            handle.remove()

    by_both(features, use)


@torch.no_grad()
def test_blocks_may_end_in_any_order_and_leave_the_layers_as_they_were():
    model, features = subject("hf")
    layer = LAYERS["hf"](model)
    before = dict(vars(layer)), logits(model)
    with features.steer({0: 2.0}, where=EVERYWHERE):
        expected = logits(model)
    first, second = features.steer({1: 1.0}, where=EVERYWHERE), features.steer({0: 2.0}, where=EVERYWHERE)
    with ExitStack() as stack:
        first.__enter__()
        stack.enter_context(second)
        first.__exit__(None, None, None)
        assert torch.equal(logits(model), expected)
    assert vars(layer) == before[0]
    assert torch.equal(logits(model), before[1])


@torch.no_grad()
def test_a_copy_made_inside_a_block_computes_with_its_own_weights():
    model, features = subject("hf")
    plain = logits(model)
    with features.steer(STEPS, where=EVERYWHERE):
        twin = copy.deepcopy(model)
        LAYERS["hf"](twin).weight.zero_()
        assert not torch.allclose(logits(twin), logits(model))
    assert torch.equal(logits(model), plain)


@cache
def wrapped_subject() -> tuple:
    wrapped = pytest.importorskip("nnsight").NNsight(hf_gpt2())
    return wrapped, decomposed(wrapped, PARAMS["hf"])


class TestNnsight:
    @pytest.mark.parametrize("does", ["reads", "assigns", "writes in place", "assigns the input", "skips"])
    @torch.no_grad()
    def test_a_trace_reads_and_replaces_the_steered_output(self, does):
        wrapped, features = wrapped_subject()
        layer = wrapped.transformer.h[0].attn.c_attn

        def use():
            with wrapped.trace(FEW):
                if does == "assigns the input":
                    layer.input = layer.input * 1.5
                if does == "skips":
                    layer.skip(wrapped.transformer.h[0].ln_1.output.repeat(1, 1, 3))
                output = layer.output.clone().save()
                if does == "assigns":
                    layer.output = output.flip(0)
                if does == "writes in place":
                    layer.output[:, 2:] *= 0.5
                found = wrapped.output.logits.save()
            return output, found

        if does != "skips":
            by_both(features, use)
            return
        plain = use()
        with features.steer(STEPS, where=EVERYWHERE):
            assert all(map(torch.equal, use(), plain))

    @torch.no_grad()
    def test_a_wrapper_made_inside_a_block_does_the_same(self):
        nnsight = pytest.importorskip("nnsight")
        model = hf_gpt2()
        features = decomposed(model, PARAMS["hf"])

        def use(wrapped):
            with wrapped.trace(FEW):
                output = wrapped.transformer.h[0].attn.c_attn.output.save()
            return (output,)

        with features.steer(STEPS, where=EVERYWHERE):
            wrapped = nnsight.NNsight(model)
            found = use(wrapped)
        with features.steer(STEPS):
            torch.testing.assert_close(found, use(wrapped))
        by_both(features, lambda: use(wrapped))

    @torch.no_grad()
    def test_what_would_take_the_steering_away_is_refused(self):
        """`.source` puts another forward in the place of the layer's own; once it is there, it is steered."""
        wrapped = pytest.importorskip("nnsight").NNsight(hf_gpt2())
        features = decomposed(wrapped, PARAMS["hf"])
        layer = wrapped.transformer.h[0].attn.c_attn

        def use():
            with wrapped.trace(FEW):
                layer.source.torch_addmm_0.output.save()
                output = layer.output.save()
            return (output,)

        with features.steer(STEPS, where=EVERYWHERE), pytest.raises(ModelStateError, match="Do this before the block"):
            use()
        by_both(features, use)

    def test_edits_are_refused_by_name_wherever_the_model_is_run(self, tmp_path):
        nnsight = pytest.importorskip("nnsight")
        wrapped = nnsight.NNsight(hf_gpt2())
        features = decomposed(wrapped, PARAMS["hf"])
        expected = features.activations(FEW)
        features.save_pretrained(tmp_path / "saved")
        with wrapped.edit(inplace=True):
            wrapped.transformer.h[0].mlp.output[:] = 0
        for use in (
            lambda: decomposed(wrapped, PARAMS["hf"]),
            lambda: pf.load(tmp_path / "saved", model=wrapped),
            lambda: features.activations(FEW),
            lambda: features.codes(FEW),
            lambda: features.ablate([0], rule="search", target=0.9),
        ):
            with pytest.raises(ModelStateError, match=r"holds edits .*model\.clear_edits\(\)"):
                use()
        with wrapped.trace(FEW):
            plain = wrapped.output.logits.save()
        with features.steer(STEPS), wrapped.trace(FEW):
            steered = wrapped.output.logits.save()
        assert not torch.allclose(plain, steered), "the user's own traces have both"
        assert torch.equal(pf.load(tmp_path / "saved", model=wrapped._module).activations(FEW), expected)
        wrapped.clear_edits()
        assert torch.equal(features.activations(FEW), expected)

    def test_an_edited_copy_is_refused_and_its_original_is_not(self):
        wrapped = pytest.importorskip("nnsight").NNsight(hf_gpt2())
        with wrapped.edit() as (_, edited):
            edited.transformer.h[0].mlp.output[:] = 0
        decomposed(wrapped, PARAMS["hf"])
        with pytest.raises(ModelStateError, match="holds edits"):
            decomposed(edited, PARAMS["hf"])
