"""Activations at named places, against the libraries' own hooks."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from param_features.errors import InputError, NonFiniteError, UnknownHookError
from param_features.params import adapter_for
from param_features.problem import read_inputs
from param_features.sae import site as module
from param_features.sae.site import activations_at, run_replaced
from tests.exits import EXITS, leave, leaving_by
from tests.models import hooked_transformer
from tests.test_restoration import assert_same, snapshot

PLACES = [
    "blocks.1.hook_resid_post",
    "hook_embed",
    "blocks.0.attn.hook_z",
    "blocks.0.mlp.hook_post",
    "ln_final.hook_normalized",
]


def at(model, tokens, name, **settings):
    adapter = adapter_for(model)
    return activations_at(adapter, read_inputs(adapter, tokens, None), name, **settings)


@pytest.mark.parametrize("name", PLACES)
def test_a_hooked_transformer_gives_what_its_cache_holds(tiny_hooked, tiny_tokens, name, monkeypatch):
    monkeypatch.setattr(module, "_POSITIONS_PER_BATCH", 70)  # seven rows at a time
    cached = tiny_hooked.run_with_cache(tiny_tokens)[1][name].detach()
    found = at(tiny_hooked, tiny_tokens, name)
    torch.testing.assert_close(found, cached.flatten(0, 1))


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.0.hook_resid_pre", "blocks.1.hook_out"])
def test_a_bridge_knows_its_hooks_by_all_names(name, tiny_tokens):
    pytest.importorskip("transformer_lens.model_bridge")
    from tests.adapters.zoo import native

    model = native()
    cached = model.run_with_cache(tiny_tokens)[1][name].detach()
    torch.testing.assert_close(at(model, tiny_tokens, name), cached.flatten(0, 1))


def test_a_hugging_face_block_gives_the_first_of_its_tuple(tiny_tokens):
    pytest.importorskip("transformers")
    from tests.adapters.zoo import hf_gpt2

    model = hf_gpt2()
    with torch.no_grad():
        hidden = model.transformer(tiny_tokens, output_hidden_states=True).hidden_states
    torch.testing.assert_close(at(model, tiny_tokens, "transformer.h.0"), hidden[1].flatten(0, 1))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_left_out(tiny_hooked, side):
    texts = [[1, 2, 3, 4, 5], [6, 7, 8]]
    filler = [0, 0]
    padded = [texts[0], [*filler, *texts[1]] if side == "left" else [*texts[1], *filler]]
    mask = [[1] * 5, [0, 0, 1, 1, 1] if side == "left" else [1, 1, 1, 0, 0]]
    encoding = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
    found = at(tiny_hooked, encoding, PLACES[0])
    alone = [at(tiny_hooked, torch.tensor([text]), PLACES[0]) for text in texts]
    torch.testing.assert_close(found, torch.cat(alone))


def test_inputs_without_tokens_are_samples_themselves(classifier, images):
    adapter = adapter_for(classifier)
    found = activations_at(adapter, read_inputs(adapter, None, images), "conv")
    torch.testing.assert_close(found, classifier.conv(images).detach())
    with pytest.raises(InputError, match="belong to inputs"):
        activations_at(adapter, read_inputs(adapter, None, images), "conv", per_position=True)


@pytest.mark.parametrize("error", EXITS)
def test_the_model_is_left_as_it_was(error):
    model = hooked_transformer()
    model.train()
    before = snapshot(model)
    adapter = adapter_for(model)
    inputs = read_inputs(adapter, torch.ones(2, 4, dtype=torch.long), None)

    def replace(acts):
        torch.rand(1)
        leave(error)
        return acts

    with leaving_by(error):
        run_replaced(adapter, inputs, PLACES[0], replace)
    assert_same(before, snapshot(model))


def test_replacing_is_what_a_hook_of_the_library_does(tiny_hooked, tiny_tokens):
    adapter = adapter_for(tiny_hooked)
    inputs = read_inputs(adapter, tiny_tokens, None)
    output, seen = run_replaced(adapter, inputs, PLACES[0], lambda acts: 0.5 * acts)
    expected = tiny_hooked.run_with_hooks(tiny_tokens, fwd_hooks=[(PLACES[0], lambda acts, hook: 0.5 * acts)])
    torch.testing.assert_close(output, expected.detach())
    torch.testing.assert_close(seen.flatten(0, 1), at(tiny_hooked, tiny_tokens, PLACES[0]))


class Odd(nn.Module):
    """A layer called twice, one never, one that gives a dictionary, one a named tuple."""

    def __init__(self):
        super().__init__()
        self.twice, self.never, self.told, self.out = nn.Linear(3, 3), nn.Linear(3, 3), Told(), nn.Linear(3, 2)
        self.lasting = Lasting()

    def forward(self, x):
        return self.out(self.lasting(self.told(self.twice(self.twice(x)))["x"])[0])


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


class Told(nn.Module):
    def forward(self, x):
        return {"x": x}


class Lasting(nn.Module):
    def forward(self, x):
        return Pair(2 * x, x)


@pytest.mark.parametrize(
    ("name", "message"),
    [("twice", "passed 2 times"), ("never", "passed 0 times"), ("told", "'told' gives a dict.*tuple that starts with one")],
)
def test_places_that_cannot_be_read_are_refused(name, message):
    adapter = adapter_for(Odd())
    with pytest.raises(InputError, match=message):
        activations_at(adapter, read_inputs(adapter, None, torch.randn(4, 3)), name)


def test_a_named_tuple_stays_one():
    adapter = adapter_for(Odd())
    inputs = read_inputs(adapter, None, torch.randn(4, 3))
    output, seen = run_replaced(adapter, inputs, "lasting", torch.zeros_like)
    torch.testing.assert_close(output, adapter.model.out.bias.detach().expand(4, 2))
    assert seen.shape == (4, 3)


def test_an_unknown_name_lists_the_nearest(tiny_hooked, tiny_tokens):
    with pytest.raises(UnknownHookError, match=r"No place 'blocks.1.hook_resid_pst'.*'blocks.1.hook_resid_post'"):
        at(tiny_hooked, tiny_tokens, "blocks.1.hook_resid_pst")


def test_a_place_without_positions_is_refused(tiny_hooked, tiny_tokens):
    with pytest.raises(InputError, match=r"\[batch, pos, …\]"):
        at(tiny_hooked, tiny_tokens, "blocks.0.attn.hook_pattern", per_position=True)


def test_nan_is_refused(tiny_tokens):
    model = hooked_transformer()
    model.blocks[0].mlp.b_out.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"blocks.1.hook_resid_post.*NaN"):
        at(model, tiny_tokens, PLACES[0])
