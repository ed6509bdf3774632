"""Each cotangent is the gradient of its own value, each value is torch's, and references are drawn as they say."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from param_features.errors import OutputError, SampleCountError, SettingError
from param_features.gradients import collect_references
from param_features.problem import KL, REFERENCES, CustomDivergence, Reference, SquaredError, read_divergence
from param_features.problem.divergence import Sum, check_reference
from tests.models import hooked_transformer
from tests.oracle import case_of


def gap(output, reference):
    """A user's own divergence."""
    return (output - reference).abs().pow(3).sum(-1)


DIVERGENCES = [KL(), SquaredError(), Sum(), CustomDivergence(gap)]
names = pytest.mark.parametrize("divergence", DIVERGENCES, ids=lambda d: d.name)


def outputs(n=6, d_output=5, seed=0):
    return 2 * torch.randn(n, d_output, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@names
def test_cotangent_is_the_gradient_of_the_value(divergence):
    output, reference = outputs(), divergence.to_reference(outputs(seed=1))
    leaf = output.clone().requires_grad_()
    expected = torch.autograd.grad(divergence.value(leaf, reference).sum(), leaf)[0]
    torch.testing.assert_close(divergence.cotangent(output, reference), expected, rtol=1e-12, atol=1e-14)


@names
def test_cotangent_is_taken_under_no_grad_and_leaves_the_output_alone(divergence):
    output = outputs()
    with torch.no_grad():
        found = divergence.cotangent(output, divergence.to_reference(outputs(seed=1)))
    assert not found.requires_grad
    assert not output.requires_grad


def test_values_are_torchs_own():
    output, other = outputs(), outputs(seed=1)
    by_torch = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=other), torch.distributions.Categorical(logits=output)
    )
    torch.testing.assert_close(KL().value(output, KL().to_reference(other)), by_torch)
    squares = functional.mse_loss(output, other, reduction="none").sum(1)
    torch.testing.assert_close(SquaredError().value(output, other), squares)
    torch.testing.assert_close(Sum().value(output, other), output.sum(1) - other.sum(1))


def test_kl_to_a_label_is_the_cross_entropy():
    labels = torch.tensor([0, 3, 2, 1, 4, 4])
    found = KL().value(outputs(), functional.one_hot(labels, 5).double())
    torch.testing.assert_close(found, functional.cross_entropy(outputs(), labels, reduction="none"))


@names
def test_a_sample_has_no_distance_from_itself(divergence):
    found = divergence.value(outputs(), divergence.to_reference(outputs()))
    torch.testing.assert_close(found, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("spec", "is_logits", "name"),
    [("auto", True, "kl"), ("auto", False, "se"), ("kl", False, "kl"), ("se", True, "se"), ("sum", True, "sum")],
)
def test_divergences_by_name(spec, is_logits, name):
    assert read_divergence(spec, is_logits=is_logits).name == name


def test_a_callable_is_a_divergence_under_its_own_name():
    assert read_divergence(gap, is_logits=True).name == "gap"


@pytest.mark.parametrize("spec", ["ki", "KL", "mse"])
def test_an_unknown_divergence_is_refused(spec):
    with pytest.raises(SettingError, match=r"Accepted: 'auto', 'kl', 'se', 'sum', or a function"):
        read_divergence(spec, is_logits=True)


@pytest.mark.parametrize(
    ("function", "returned"),
    [
        (lambda f, y: (f - y).sum(), r"returned \(\) for|returned Tensor"),
        (lambda f, y: f - y, r"returned \(6, 5\)"),
        (lambda f, y: 1.0, "returned float"),
    ],
    ids=["mean", "not reduced", "no tensor"],
)
def test_a_callable_that_gives_no_scalar_per_sample_is_refused(function, returned):
    with pytest.raises(OutputError, match=rf"({returned}).*one scalar per sample, shape \(6,\)"):
        CustomDivergence(function).cotangent(outputs(), outputs())


def draws(reference, divergence, output, n=300):
    seeded = generator()
    return torch.stack([reference.draw(divergence, output, seeded) for _ in range(n)])


@names
def test_sample_draws_every_other_sample_and_never_itself(divergence):
    output = outputs(4)
    as_references, drawn = divergence.to_reference(output), draws(Reference("sample"), divergence, output)
    index = torch.cdist(drawn.transpose(0, 1), as_references.expand(4, -1, -1)).argmin(-1)
    assert torch.equal(as_references[index.T], drawn)
    for row in range(4):
        assert set(index[row].tolist()) == set(range(4)) - {row}


def test_sample_needs_a_second_sample():
    with pytest.raises(SampleCountError, match="the batch holds one"):
        Reference("sample").draw(KL(), outputs(1), generator())


def test_label_is_one_hot_drawn_from_the_models_own_softmax():
    output, n = outputs(3), 4000
    drawn = draws(Reference("label"), KL(), output, n)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn.sum(-1) == 1).all()
    p = output.softmax(-1)
    assert ((drawn.mean(0) - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_uniform_and_mean_and_given():
    assert torch.equal(Reference("uniform").draw(KL(), outputs(), generator()), torch.full((6, 5), 0.2, dtype=torch.float64))
    pool = outputs(3, seed=2)
    drawn = draws(Reference("given", pool), SquaredError(), outputs(), 50)
    assert {tuple(row) for row in drawn.flatten(0, 1).tolist()} == {tuple(row) for row in pool.tolist()}
    mean = Reference("mean", pool[:1]).draw(SquaredError(), outputs().float(), generator())
    assert torch.equal(mean, pool[:1].float().expand(6, 5))


@pytest.mark.parametrize("kind", ["sample", "label", "given"])
def test_draws_repeat_with_the_seed_and_leave_the_global_generator(kind):
    reference, before = Reference(kind, outputs(9) if kind == "given" else None), torch.get_rng_state()
    first, same, other = (reference.draw(KL(), outputs(30), generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("spec", [*REFERENCES, torch.zeros(3)])
def test_known_references_pass(spec):
    check_reference(spec, KL())


@pytest.mark.parametrize(
    ("spec", "divergence", "message"),
    [
        ("labels", KL(), r"'sample', 'mean', 'uniform', 'label', or a tensor.*nearest: 'label'"),
        ("uniform", SquaredError(), r"distribution over logits.*'se'"),
        ("label", Sum(), r"distribution over logits.*'sum'"),
    ],
)
def test_references_without_meaning_are_refused(spec, divergence, message):
    with pytest.raises(SettingError, match=message):
        check_reference(spec, divergence)


def collected(case, kind, n=4, divergence=None):
    return collect_references(case.engine, divergence or KL(), case.data, kind, n, generator())


def test_collected_references_are_outputs_of_the_data():
    model = nn.Linear(3, 5).double()
    case = case_of(model, inputs=outputs(20, 3))
    found, all_outputs = collected(case, "sample"), model(outputs(20, 3)).softmax(-1).detach()
    nearest = torch.cdist(found, all_outputs).min(1)
    assert nearest.values.max() < 1e-12
    assert nearest.indices.unique().numel() == 4
    torch.testing.assert_close(collected(case, "mean"), all_outputs.mean(0, keepdim=True))
    assert torch.equal(collected(case, "uniform"), torch.full((1, 5), 0.2, dtype=torch.float64))
    assert torch.equal(collected(case, "label"), found)


def test_collected_references_of_a_padded_batch_lie_at_real_positions():
    pytest.importorskip("transformer_lens")
    model = hooked_transformer(n_layers=1)
    rows = [[1, 2, 3, 4, 5, 6], [7], [8, 9]]
    case = case_of(model, "blocks.0.attn.W_K", tokens=rows)
    real = torch.cat([model(torch.tensor([row]))[0] for row in rows]).softmax(-1).detach()
    for seed in range(8):
        found = collect_references(case.engine, KL(), case.data, "sample", 3, generator(seed))
        assert torch.cdist(found, real).min(1).values.max() < 1e-10
    assert math.isclose(float(found.sum()), 3)
