"""Stored gradients are those of the samples that were drawn, in as much memory as was said before."""

import pytest
import torch
from torch import nn

from param_features.errors import MemoryEstimateError, NoGradientError, NonFiniteError
from param_features.gradients import Dense, GradientStore, Harvester, HarvestSettings, Indexed, SampleProbe
from param_features.problem import KL, Reference, SquaredError
from param_features.problem.divergence import Sum
from tests.models import hooked_transformer
from tests.oracle import case_of


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x):
        return self.layer(x).square()


def harvester_of(model, params="*", *, tokens=None, inputs=None, reference="sample", divergence=None, **settings):
    case = case_of(model, params, tokens=tokens, inputs=inputs)
    harvester = Harvester(
        SampleProbe(case.engine, case.data), divergence or SquaredError(), Reference(reference), HarvestSettings(**settings)
    )
    return harvester, case.data


def harvested(harvester, data, n_slots=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return harvester.store(data, n_slots, generator, progress=False, title="")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100, None])
def test_no_sample_is_compared_with_itself_whatever_the_batches(batch_size):
    harvester, data = harvester_of(Net().double(), inputs=torch.randn(7, 3).double(), batch_size=batch_size)
    assert (harvested(harvester, data).square_norm() > 1e-12).all()


def test_stored_gradients_are_those_of_every_row_in_order():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    harvester, data = harvester_of(Net().double(), "layer.weight", inputs=x, divergence=Sum(), batch_size=3)
    found = harvested(harvester, data).rows(slice(None))["layer.weight"].dense().matrix
    layer = harvester.engine.adapter.model.layer
    torch.testing.assert_close(found, 2 * layer(x).detach().unsqueeze(2) * x.unsqueeze(1))


def test_same_generator_same_gradients():
    pytest.importorskip("transformer_lens")
    tokens = torch.randint(20, (6, 5), generator=torch.Generator().manual_seed(0))
    model = hooked_transformer(n_layers=1)
    harvester, data = harvester_of(model, "blocks.0.attn.W_K", tokens=tokens, divergence=KL())
    first, second, third = (harvested(harvester, data, 3, seed).square_norm() for seed in (1, 1, 2))
    assert first.shape == (18,)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_memory_is_estimated_before_the_run_and_bounds_the_default():
    harvester, data = harvester_of(Net(), inputs=torch.randn(50, 3), max_memory_gib=10 * 32 / 2**30)
    assert harvester.sample_bytes == 4 * (2 + 3 + 2)
    assert harvester.settings_that_fit.n_samples == 320 // 28
    with pytest.raises(MemoryEstimateError, match=r"50 samples.*n_samples=11 or fewer"):
        harvested(harvester, data)


def test_bfloat16_halves_the_memory_and_is_read_as_float32():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    model = Net()
    (exact, data), (rounded, _) = (harvester_of(model, inputs=x, memory_dtype=name) for name in ("float32", "bfloat16"))
    assert 2 * rounded.sample_bytes == exact.sample_bytes
    full, half = harvested(exact, data), harvested(rounded, data)
    index = torch.tensor([5, 0, 7])
    for name, gradient in half.rows(index).items():
        for one, other in zip(gradient.tensors, full.rows(index)[name].tensors, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one, other.bfloat16().float())
            assert not torch.equal(one, other)
    assert half.sample_bytes == full.sample_bytes
    torch.testing.assert_close(half.square_norm(), full.square_norm(), rtol=2**-6, atol=0)


def test_bfloat16_keeps_indices_of_tables_exact():
    gradient = Indexed(torch.randn(6, 3, 4), torch.arange(18).reshape(6, 3) + 1000, 2000)
    store = GradientStore(6, {"w": gradient}, torch.bfloat16)
    store.add({"w": gradient})
    assert torch.equal(store.rows(slice(None))["w"].tensors[1], gradient.index)


def test_a_store_refuses_what_is_not_finite_and_what_is_always_zero():
    store = GradientStore(2, {"w": Dense(torch.zeros(1, 2, 2))})
    store.add({"w": Dense(torch.zeros(2, 2, 2))})
    with pytest.raises(NoGradientError, match="'w' has a zero gradient"):
        store.check_gradients()
    with pytest.raises(NonFiniteError, match="gradient of 'w'"):
        store.add({"w": Dense(torch.full((1, 2, 2), torch.nan))})
