"""All positions' cotangents go in one pass to the last place where positions mix, and only there."""

import pytest
import torch
from torch import nn

from tests.adapters.zoo import hf_gpt2, hf_llama
from tests.models import hooked_transformer, randomised
from tests.oracle import assert_equal_gradients, case_of

pytest.importorskip("transformer_lens")

TOKENS = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(4))
POSITIONS = torch.tensor([[0, 5, 3], [4, 1, 0], [2, 3, 5], [5, 0, 0]])  # the last row has a position twice


def cut_of(model, params, tokens=TOKENS) -> tuple:
    case = case_of(model, params, tokens=tokens)
    names = {module: name for name, module in model.named_modules()}
    return case, names.get(case.engine.routes.cut)


@pytest.mark.parametrize(
    ("make", "params", "expected"),
    [
        (hooked_transformer, "blocks.0.*", "blocks.1.hook_resid_mid"),
        (hooked_transformer, "blocks.1.attn.W_K", "blocks.1.hook_attn_out"),
        (hooked_transformer, "blocks.1.mlp.W_in", "blocks.1.mlp.hook_post"),
        (hf_gpt2, "transformer.h.0.attn.c_attn.weight", "transformer.h.1.ln_2"),
        (hf_llama, "model.layers.0.self_attn.k_proj.weight", "model.layers.1.post_attention_layernorm"),
    ],
)
def test_the_cut_lies_above_the_last_attention_and_gives_autograds_gradients(make, params, expected):
    case, name = cut_of(make(), params)
    for slot, found in enumerate(case.gradients(POSITIONS)):
        assert_equal_gradients(found, case.by_autograd(POSITIONS[:, [slot]]))
    without = case.with_routes(cut=None).gradients(POSITIONS)
    for one, two in zip(case.gradients(POSITIONS), without, strict=True):
        assert_equal_gradients(one, two)
    assert name == expected


class Mixing(nn.Module):
    """Positions mix once before `low`, and again between `low` and `high`, by a weight that may be zero."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.embed, self.mix = nn.Embedding(20, 4), nn.Linear(4, 4)
        self.low, self.high, self.lm_head = nn.LayerNorm(4), nn.LayerNorm(4), nn.Linear(4, 20, bias=False)

    def forward(self, tokens):
        x = self.low(torch.tanh(self.mix(self.embed(tokens))).cumsum(1))
        return self.lm_head(self.high(x + self.weight * x.cumsum(1)))


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_a_way_between_positions_counts_even_if_its_weight_is_zero(weight):
    case, name = cut_of(randomised(Mixing(weight).double()), "mix.weight")
    assert name == "high"
    case.model.weight = 0.7
    for slot, found in enumerate(case.gradients(POSITIONS)):
        assert_equal_gradients(found, case.by_autograd(POSITIONS[:, [slot]]))


class Skipping(Mixing):
    """What goes to `low` is no way for all of the gradient: some goes past it."""

    def forward(self, tokens):
        x = torch.tanh(self.mix(self.embed(tokens))).cumsum(1)
        return self.lm_head(self.high(self.weight * x + self.low(2 * x)))


@pytest.mark.parametrize("weight", [1.0, 1e-3, 0.0])
def test_a_place_that_gradients_go_past_is_no_cut(weight):
    assert cut_of(randomised(Skipping(weight).double()), "mix.weight")[1] == "high"


class MixingLast(Mixing):
    """Positions mix just below the head."""

    def forward(self, tokens):
        return self.lm_head(torch.tanh(self.high(self.mix(self.embed(tokens)))).cumsum(1))


@pytest.mark.parametrize(("make", "tokens"), [(MixingLast, TOKENS), (Mixing, TOKENS[:, :1])])
def test_there_is_no_cut_where_positions_mix_last_or_there_is_one(make, tokens):
    case, name = cut_of(randomised(make(0.5).double()), "mix.weight", tokens)
    assert case.engine.routes.through_head
    assert name is None
