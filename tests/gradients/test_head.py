"""KL's cotangents below a linear head are those at the outputs, taken back; the outputs are never made."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from param_features.errors import NonFiniteError
from param_features.gradients import AgainstMean, Harvester, HarvestSettings, SampleProbe
from param_features.gradients.cotangents import AgainstRows
from param_features.gradients.head import LinearHead
from param_features.problem import KL, Reference, SquaredError
from tests.adapters.zoo import hf_gpt2
from tests.models import hooked_transformer, randomised
from tests.oracle import Case, case_of

pytest.importorskip("transformer_lens")

TOKENS = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(4))
W_K = "blocks.0.attn.W_K"


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def case() -> Case:
    return case_of(hooked_transformer(), W_K, tokens=TOKENS)


@pytest.mark.parametrize("n_tokens", [1, 7, 1500])
@pytest.mark.parametrize("has_bias", [True, False])
def test_the_expected_row_is_the_softmax_taken_back(n_tokens, has_bias):
    head = LinearHead(normal(n_tokens, 5), normal(n_tokens, seed=1) if has_bias else None)
    states = 3 * normal(9, 5, seed=2)
    p = nn.functional.linear(states, head.weight, head.bias).softmax(-1)
    torch.testing.assert_close(head.expected_row(states), p @ head.weight, rtol=1e-10, atol=1e-12)


def harvested(case: Case, reference: Reference, divergence=None, **routes) -> torch.Tensor:
    engine = replace(case.engine, routes=replace(case.engine.routes, **routes))
    harvester = Harvester(SampleProbe(engine, case.data), divergence or KL(), reference, HarvestSettings())
    found = []
    rows, generator = torch.arange(len(TOKENS)), torch.Generator().manual_seed(3)
    harvester.each_slot(case.data, rows, 3, generator, lambda *taken: found.append(taken[2][W_K].dense().matrix))
    return torch.stack(found)


POOLS = {n: normal(n, 20, seed=n).softmax(-1) for n in (1, 3, 40)}
REFERENCES = {
    "sample": Reference("sample"),
    "uniform": Reference("uniform"),
    "label": Reference("label"),
    "mean": Reference("mean", POOLS[1]),
    "few": Reference("given", POOLS[3]),
    "many": Reference("given", POOLS[40]),
    "labels' pool": Reference("label", POOLS[3]),
}


@pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)
@pytest.mark.parametrize("divergence", [KL(), SquaredError()], ids=["kl", "se"])
def test_every_reference_is_drawn_alike_and_gives_the_gradients_of_the_outputs(case, reference, divergence):
    if isinstance(divergence, SquaredError) and reference.kind in ("uniform", "label"):
        pytest.skip("a distribution over logits")
    assert case.engine.routes.is_linear
    ours = harvested(case, reference, divergence)
    torch.testing.assert_close(ours, harvested(case, reference, divergence, is_linear=False), rtol=1e-9, atol=1e-14)
    assert ours.norm() > 1e-6


@pytest.mark.parametrize("n_references", [1, 4, 40])
def test_references_of_rows_and_means_of_references(case, n_references):
    table = normal(n_references, 20).softmax(-1)
    row = torch.tensor([0, 3, 1, 1, 2, 0]) % n_references
    head = LinearHead.of(case.engine.adapter)
    states, position = normal(6, 16), torch.zeros(6, dtype=torch.long)
    output = nn.functional.linear(states, head.weight, head.bias)
    for cotangents in (AgainstRows(KL(), table), AgainstMean(KL(), table)):
        expected = cotangents(output, row, position) @ head.weight
        torch.testing.assert_close(cotangents.below(head, states, row), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["sample", "uniform", "few"])
def test_the_head_is_never_called(case, name, monkeypatch):
    def refuse(*_):
        raise AssertionError("outputs were made")

    monkeypatch.setattr(case.model.unembed, "forward", refuse)
    assert harvested(case, REFERENCES[name]).isfinite().all()
    with pytest.raises(AssertionError, match="outputs were made"):
        harvested(case, REFERENCES["label"])


def test_states_that_are_not_finite_are_refused_with_the_outputs_shape(case):
    handle = case.model.ln_final.register_forward_hook(lambda module, args, output: output / 0)
    with pytest.raises(NonFiniteError, match=r"output of shape \(12, 20\).*Check the weights"):
        harvested(case, REFERENCES["sample"])
    handle.remove()


class Twice(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def capped(head: nn.Linear) -> nn.Linear:
    """A layer whose forward was exchanged for one with a cap, which random states are too small to show."""
    forward = head.forward
    head.forward = lambda x: 1e4 * torch.tanh(forward(x) / 1e4)
    return head


class Model(nn.Module):
    """A language model with some layer of logits, and something added after it."""

    def __init__(self, head: nn.Module, added: float = 0.0) -> None:
        super().__init__()
        self.embed, self.mix, self.lm_head, self.added = nn.Embedding(20, 4), nn.Linear(4, 4), head, added

    def forward(self, tokens):
        logits = self.lm_head(torch.tanh(self.mix(self.embed(tokens))).cumsum(1))
        return logits + self.added * torch.arange(20) if self.added else logits


@pytest.mark.parametrize(
    ("head", "added", "through_head", "is_linear"),
    [
        (nn.Linear(4, 20), 0.0, True, True),
        (Twice(4, 20), 0.0, True, False),
        (capped(nn.Linear(4, 20)), 0.0, True, False),
        (nn.Linear(4, 20), 0.1, False, False),  # no gradient shows it, but KL depends on it
    ],
)
def test_what_is_no_plain_product_or_not_the_output_is_found_out(head, added, through_head, is_linear):
    case = case_of(randomised(Model(head, added).double()), "mix.weight", tokens=TOKENS)
    assert (case.engine.routes.through_head, case.engine.routes.is_linear) == (through_head, is_linear)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["sample", "few"])
def test_half_precision_models_have_cotangents_and_gradients_in_float32(dtype, name):
    """The exact gradients of the rounded weights are met within the rounding of the passes themselves."""
    half = hf_gpt2(dtype=torch.float32).to(dtype)
    param, exact = "transformer.h.0.attn.c_attn.weight", hf_gpt2(dtype=torch.float32).to(dtype).double()
    found, seen = [], []

    class Watched(KL):
        def cotangent(self, output, reference):
            seen.append((output.dtype, reference.dtype))
            return super().cotangent(output, reference)

    for model in (half, exact):
        case = case_of(model, param, tokens=TOKENS)
        assert case.engine.routes.through_head
        harvester = Harvester(SampleProbe(case.engine, case.data), Watched(), REFERENCES[name], HarvestSettings())
        parts, generator = [], torch.Generator().manual_seed(3)
        take = lambda _, __, gradients, into=parts: into.append(gradients[param])  # noqa: E731
        harvester.each_slot(case.data, torch.arange(4), 6, generator, take)
        found.append(parts)
    ours, theirs = (torch.stack([part.dense().matrix for part in parts]).double() for parts in found)
    assert {part.delta.dtype for part in found[0]} == {torch.float32}
    assert seen[0] == (torch.float32, torch.float32)
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
    assert (ours - theirs).norm() < tolerance * theirs.norm()
