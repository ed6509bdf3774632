"""Several positions per sequence share a forward pass; the head is met once; nothing after a position feeds it."""

import pytest
import torch
from torch import nn

from param_features.errors import NonFiniteError
from param_features.gradients import engine as module
from tests.models import hooked_transformer, randomised
from tests.oracle import Case, assert_equal_gradients, case_of

pytest.importorskip("transformer_lens")

TOKENS = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(4))
POSITIONS = torch.tensor([[0, 5, 3], [4, 1, 0], [2, 3, 5], [5, 0, 0]])


@pytest.fixture(scope="module")
def model():
    return hooked_transformer()


@pytest.mark.parametrize("max_logits", [2**25, 1], ids=["one chunk", "a chunk per slot"])
@pytest.mark.parametrize(
    "params", ["blocks.*", "pos_embed.W_pos", ["pos_embed.W_pos", "blocks.*.W_K"], "unembed.*"], ids=str
)
def test_each_slot_equals_a_run_of_its_own(model, params, max_logits, monkeypatch):
    monkeypatch.setattr(module, "MOST_LOGITS", max_logits)
    case = case_of(model, params, tokens=TOKENS)
    for slot, found in enumerate(case.gradients(POSITIONS)):
        assert_equal_gradients(found, case.by_autograd(POSITIONS[:, [slot]]))


@pytest.mark.parametrize("through_head", [True, False])
@pytest.mark.parametrize(("n_rows", "sizes"), [(4, [8, 4]), (1, [3])])
def test_outputs_that_exist_together_are_bounded_but_hold_two_samples(model, monkeypatch, through_head, n_rows, sizes):
    """However many slots are taken, outputs are made a few at a time; a single row's are never made alone."""
    monkeypatch.setattr(module, "MOST_LOGITS", 160)  # 8 outputs of 20
    case = case_of(model, "blocks.*", tokens=TOKENS[:n_rows]).with_routes(through_head=through_head)
    seen = []

    def cotangent_of(output, row, at):
        seen.append(len(output))
        return case.cotangents[row, at]

    case.engine.each_slot(case.data, POSITIONS[:n_rows], cotangent_of, lambda *_: None)
    assert seen == sizes


def test_loop_and_map_agree_over_slots(model):
    case = case_of(model, ["pos_embed.W_pos", "blocks.1.attn.W_V"], tokens=TOKENS)
    mapped, looped = (case.with_routes(is_vmapped=which).gradients(POSITIONS) for which in (True, False))
    for one, two in zip(mapped, looped, strict=True):
        assert_equal_gradients(one, two)


@pytest.mark.parametrize("params", ["blocks.*", "ln_final.w"])
def test_taking_cotangents_through_the_head_first_changes_nothing(model, params):
    case = case_of(model, params, tokens=TOKENS)
    assert case.engine.routes.through_head
    without = case.with_routes(through_head=False).gradients(POSITIONS)
    for one, two in zip(case.gradients(POSITIONS), without, strict=True):
        assert_equal_gradients(one, two)


@pytest.mark.parametrize("params", ["unembed.W_U", ["blocks.0.attn.W_K", "unembed.b_U"]], ids=str)
def test_the_head_is_not_left_out_where_it_is_needed(model, params):
    assert not case_of(model, params, tokens=TOKENS).engine.routes.through_head


def test_a_parameter_without_a_layer_of_its_own_goes_through_the_head_too(model):
    routes = case_of(model, ["blocks.0.attn.W_K", "pos_embed.W_pos"], tokens=TOKENS).engine.routes
    assert routes.through_head
    assert set(routes.watched) == {"pos_embed.W_pos"}


def test_a_soft_cap_after_the_head_keeps_it_in_the_pass():
    assert not case_of(hooked_transformer(output_logits_soft_cap=3.0), "blocks.*", tokens=TOKENS).engine.routes.through_head


class ScaledLogits(nn.Module):
    """Its output is not what its `lm_head` returns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head = nn.Embedding(20, 4), nn.Linear(4, 4), nn.Linear(4, 20)

    def forward(self, tokens):
        return 3 * self.lm_head(torch.tanh(self.mix(self.embed(tokens).cumsum(1))))


def test_a_head_that_does_not_give_the_output_is_found_out():
    case = case_of(randomised(ScaledLogits().double()), "mix.weight", tokens=TOKENS)
    assert case.engine.adapter.head() is not None
    assert not case.engine.routes.through_head
    assert not case.engine.routes.dense
    assert_equal_gradients(case.gradients()[0], case.by_autograd())


def gradients_at(case: Case, position: int):
    found = {}
    positions = torch.full((len(TOKENS), 1), position)
    case.engine.each_slot(
        case.data, positions, lambda output, row, at: case.cotangents[row, at], lambda _, part: found.update(part)
    )
    return found


def test_positions_after_the_samples_own_feed_nothing(model):
    gradient = gradients_at(case_of(model, "blocks.0.attn.W_K", tokens=TOKENS), 2)["blocks.0.attn.W_K"]
    by_position = gradient.delta.norm(dim=(0, 2))
    assert gradient.delta.shape[1] == TOKENS.shape[1]
    assert (by_position[:3] > 0).all()
    assert (by_position[3:] == 0).all()


def test_later_tokens_do_not_change_an_earlier_samples_gradient(model):
    other = TOKENS.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 20
    ours, theirs = (
        gradients_at(case_of(model, "blocks.0.attn.W_K", tokens=tokens), 2)["blocks.0.attn.W_K"].dense().matrix
        for tokens in (TOKENS, other)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_rows_do_not_mix(model):
    case = case_of(model, "blocks.0.attn.W_K", tokens=TOKENS)
    alone = case_of(model, "blocks.0.attn.W_K", tokens=TOKENS[2:3])
    alone.cotangents.copy_(case.cotangents[2:3])
    name = "blocks.0.attn.W_K"
    torch.testing.assert_close(case.gradients()[0][name][2], alone.gradients()[0][name][0], rtol=1e-10, atol=1e-14)


def test_cotangents_are_asked_for_with_outputs_rows_and_positions(model):
    case = case_of(model, "blocks.0.attn.W_K", tokens=TOKENS)
    logits, seen = model(TOKENS), []

    def cotangent_of(output, row, position):
        torch.testing.assert_close(output, logits[row, position], rtol=1e-10, atol=1e-12)
        seen.extend(zip(row.tolist(), position.tolist(), strict=True))
        return torch.ones_like(output)

    case.engine.each_slot(case.data, POSITIONS, cotangent_of, lambda *_: None)
    assert seen == [(row, int(POSITIONS[row, slot])) for slot in range(3) for row in range(4)]


def test_output_that_is_not_finite_is_refused(model):
    case = case_of(model, "blocks.0.attn.W_K", tokens=TOKENS)
    handle = model.ln_final.register_forward_hook(lambda module, args, output: output / 0)
    with pytest.raises(NonFiniteError, match=r"output of shape \(4, 20\).*Check the weights"):
        case.gradients()
    handle.remove()
