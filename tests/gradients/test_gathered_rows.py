"""A layer that is called on rows which the model gathers, as an expert in a loop: every row counts for its own sample."""

import pytest
import torch
from torch import nn

import param_features as pf
from param_features.errors import AdapterError
from param_features.gradients import Factored
from tests.adapters.zoo import seeded
from tests.oracle import assert_equal_gradients, case_of

N_POS = 6
MIXED = torch.randint(21, (16, N_POS), generator=torch.Generator().manual_seed(1))
ONE = MIXED.clone()
ONE[:2] = ONE[:2] // 3 * 3  # all of the first rows' tokens go to expert 0
SOME = MIXED.clone()
SOME[2:] = SOME[2:] // 3 * 3 + 1  # experts 0 and 2 are called for the first two rows alone
EACH = MIXED // 3 * 3 + 1
EACH[:, 2] -= 1  # as many rows as samples: one position of each
TWO = EACH.clone()
TWO[::2, 4], TWO[1::2, 2] = TWO[::2, 4] - 1, TWO[1::2, 2] + 1
TWO[::2, 3] = TWO[::2, 3] - 1  # three rows of every second sample, none of the others
TOKENS = {"mixed": MIXED, "one expert first": ONE, "not always called": SOME, "one each": EACH, "some samples": TWO}


class Loop(nn.Module):
    """A language model with a loop over experts; a token's number says which expert it goes to."""

    def __init__(self, n_chosen: int = 1) -> None:
        super().__init__()
        self.embed, self.lm_head, self.n_chosen = nn.Embedding(21, 5), nn.Linear(5, 21), n_chosen
        self.experts = nn.ModuleList(nn.Linear(5, 5) for _ in range(3))

    def forward(self, tokens):
        x = self.embed(tokens)
        x = torch.tanh(x + 0.3 * x.cumsum(1))
        states, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        for number, expert in enumerate(self.experts):
            distance = (tokens.flatten() - number) % 3
            (sent,) = torch.where(distance < self.n_chosen)
            if len(sent):
                out = out.index_add(0, sent, torch.tanh(expert(states[sent])))
        return self.lm_head((x + out.view_as(x)).cumsum(1))


@pytest.mark.parametrize("n_chosen", [1, 2])
@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
def test_gradients_are_autograds(tokens, n_chosen):
    case = case_of(seeded(Loop, n_chosen), "experts.*", tokens=tokens)
    for position in (N_POS - 1, 2):
        positions = torch.full((len(tokens), 1), position)
        assert_equal_gradients(case.gradients(positions)[0], case.by_autograd(positions))
    assert "experts.0.weight" in case.engine.routes.taps


@pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)
@pytest.mark.parametrize("n_rows", [3, 7, 16])
def test_every_batch_has_gradients_of_one_shape(tokens, n_rows):
    case, found = case_of(seeded(Loop), "experts.0.*", tokens=tokens), []
    for rows in torch.arange(16).split(n_rows):
        data = case.data.rows(rows)
        cotangent = lambda output, row, position, rows=rows: case.cotangents[rows[row], position]  # noqa: E731
        case.engine.each_slot(data, torch.full((len(data), 1), 3), cotangent, lambda _, gradients: found.append(gradients))
    weights = [gradients["experts.0.weight"] for gradients in found]
    assert all(isinstance(gradient, Factored) for gradient in weights)
    assert len({gradient.delta.shape[1:] for gradient in weights}) == 1
    expected = case.by_autograd(torch.full((16, 1), 3))["experts.0.weight"]
    torch.testing.assert_close(torch.cat([gradient.dense().matrix for gradient in weights]), expected, rtol=1e-9, atol=1e-13)


def test_features_of_an_expert_in_a_loop():
    model = seeded(Loop)
    call = {"n_features": 3, "l0": 1, "steps": 4, "progress": False}
    features = pf.decompose(model, "experts.0.weight", ONE, **call)
    by_jvp, by_vjp = (features.activations(MIXED[:4], route=route) for route in ("jvp", "vjp"))
    torch.testing.assert_close(by_jvp, by_vjp, rtol=1e-6, atol=1e-9)
    with (
        pytest.raises(AdapterError, match=r"positions of a batch in order.*experts.0.weight.*Leave where= out"),
        features.steer({0: 1.0}, where=torch.ones(16, dtype=torch.bool)),
    ):
        pass
