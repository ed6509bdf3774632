"""Components that start from a matrix's inputs sum to it, and find directions that were planted as independent."""

import pytest
import torch

from param_features.fit.components.from_inputs import (
    independent_parts,
    rotation_to_independence,
    seen_positions,
    starting_of,
)
from param_features.fit.components.importance import NETWORKS
from param_features.fit.components.parts import Parts
from param_features.fit.components.passes import MaskedModel
from param_features.gradients import build_engine, sites_of
from param_features.problem import read_model, read_problem
from tests.adapters.zoo import hf_gpt2
from tests.models import integers

D_OUT, D_IN, N_POS = 6, 8, 4000


def planted(seed=0):
    """Sparse independent sources, mixed at random, and a matrix that reads them."""
    generator = torch.Generator().manual_seed(seed)
    sources = torch.randn(N_POS, D_IN, generator=generator, dtype=torch.float64)
    sources = sources * (torch.rand(N_POS, D_IN, generator=generator) < 0.1)
    mixing = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    weight = torch.randn(D_IN, D_IN, generator=generator, dtype=torch.float64)
    return weight, sources @ mixing.T, torch.linalg.inv(mixing)


@pytest.mark.parametrize("n", [4, 8, 20])
@pytest.mark.parametrize("is_table", [False, True])
def test_they_sum_to_the_matrix_where_there_are_enough(n, is_table):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(D_OUT, D_IN, generator=generator, dtype=torch.float64)
    index = torch.randint(D_IN, (N_POS,), generator=generator)
    applied = index if is_table else torch.randn(N_POS, D_IN, generator=generator, dtype=torch.float64)
    parts = independent_parts(weight, applied, n, generator)
    assert parts.U.shape == (n, D_OUT) and parts.V.shape == (n, D_IN)
    torch.testing.assert_close(parts.V.norm(dim=1), torch.ones(n, dtype=torch.float64))
    rest = float(parts.remainder(weight).norm() / weight.norm())
    assert rest < 1e-9 if n >= D_OUT else 0.01 < rest < 1
    assert not parts.U[D_OUT:].any()


def left_by_few(parts, weight, inputs, n_kept=2):
    """Share of the outputs that is lost where the few components that add most are kept at every position."""
    inner = inputs @ parts.V.T
    sizes = inner.abs() * parts.U.norm(dim=1)
    kept = sizes >= sizes.topk(n_kept, dim=1).values[:, -1:]
    outputs = inputs @ weight.T
    return float((outputs - (inner * kept) @ parts.U).square().sum() / outputs.square().sum())


def test_few_of_them_give_more_of_the_outputs_than_few_singular_directions():
    weight, inputs, _ = planted()
    left, sizes, right = torch.linalg.svd(weight)
    singular = Parts((left * sizes).T.contiguous(), right)
    own = independent_parts(weight, inputs, D_IN, torch.Generator().manual_seed(0))
    assert left_by_few(own, weight, inputs) < 0.5 * left_by_few(singular, weight, inputs)


def test_a_rotation_finds_independent_sources():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(N_POS, 5, generator=generator, dtype=torch.float64)
    sources = sources * (torch.rand(N_POS, 5, generator=generator) < 0.1) / 0.1**0.5
    mixed = sources @ torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64)).Q
    found = rotation_to_independence(mixed) @ mixed.T @ sources / N_POS
    assert float(found.abs().max(0).values.min()) > 0.9
    assert float(found.abs().sort(0).values[-2].max()) < 0.2


def test_equal_inputs_give_equal_parts():
    weight, inputs, _ = planted()
    first, second = (independent_parts(weight, inputs, D_IN, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first.U, second.U) and torch.equal(first.V, second.V)


@pytest.mark.parametrize("kind", ["component", "site"])
def test_importances_begin_with_the_size_of_what_components_do(kind):
    weight, inputs, _ = planted()
    parts = independent_parts(weight, inputs, D_IN + 3, torch.Generator().manual_seed(0))
    hidden = 2 * parts.n + 4
    network = NETWORKS[kind]({"w": (parts.n, D_IN)}, hidden, torch.Generator().manual_seed(0), frozenset()).double()
    starting = starting_of(parts, inputs)
    network.begin({"w": starting})
    usual = inputs.norm(dim=1) > 0
    rows = (inputs[usual] / inputs[usual].square().mean(1, keepdim=True).sqrt() * starting.root_mean_square).unsqueeze(0)
    z = network({"w": parts.inner(rows)}, {"w": rows})["w"][0].detach()
    wanted = parts.inner(rows)[0].abs() / starting.at
    is_large = wanted[:, :D_IN] > 1
    assert is_large.any() and not is_large.all()
    torch.testing.assert_close(z[:, :D_IN][is_large], wanted[:, :D_IN][is_large], rtol=0.2, atol=0.5)
    assert float(z[:, D_IN:].abs().max()) < 0.5


@pytest.mark.parametrize("side", ["left", "right"])
def test_what_matrices_are_applied_to_is_seen_without_padding(side):
    tokens = integers(20, 6, 5)
    mask = torch.ones(6, 5, dtype=torch.long)
    mask[:, :2] = 0
    mask = mask if side == "left" else mask.flip(1)
    pytest.importorskip("transformers")
    model = hf_gpt2()
    problem = read_problem(
        read_model(model, ["transformer.h.0.mlp.c_fc.weight"]),
        {"input_ids": tokens, "attention_mask": mask},
        None,
        divergence="kl",
        reference="sample",
    )
    engine = build_engine(problem, print)
    masked = MaskedModel(engine, sites_of(engine))
    with masked.held():
        (seen,) = seen_positions(masked, problem.data, 2, torch.Generator().manual_seed(0)).values()
        (whole,) = masked.clean(problem.data).applied.values()
    real = {tuple(row) for row in whole[mask.bool()].tolist()}
    assert len(seen) == int(mask.sum()) and {tuple(row) for row in seen.tolist()} == real
