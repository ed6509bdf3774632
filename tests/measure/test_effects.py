"""What a change of the weights does to outputs, down to changes that single precision cannot tell from rounding."""

import torch

import param_features as pf
from param_features.intervene import deltas_of
from param_features.measure.effects import distance, outputs_of, read_effects
from param_features.problem import KL, Question, SquaredError, read_inputs
from param_features.problem.divergence import Sum
from tests.models import hooked_transformer


def test_changes_are_those_of_written_weights(tiny_hooked, tiny_features, tiny_tokens):
    subset = tiny_features.engine.subset
    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens[:5], None)
    changes = [deltas_of(tiny_features.v_out, given, subset) for given in ({0: 0.5}, {1: -2.0, 3: 1.0})]
    found = read_effects(tiny_features.engine, inputs, changes, lambda before, after: torch.stack([before, after], 1))
    with torch.no_grad():
        plain = tiny_hooked(tiny_tokens[:5]).flatten(0, 1)
        for change, (before, after) in zip(changes, (each.unbind(1) for each in found), strict=True):
            with subset.edited(change):
                torch.testing.assert_close(after, tiny_hooked(tiny_tokens[:5]).flatten(0, 1))
            torch.testing.assert_close(before, plain)


def test_batches_do_not_matter(tiny_features, tiny_tokens, monkeypatch):
    from param_features.measure import effects

    inputs = read_inputs(tiny_features.engine.adapter, tiny_tokens[:7], None)
    change = deltas_of(tiny_features.v_out, {0: 0.5}, tiny_features.engine.subset)
    whole = read_effects(tiny_features.engine, inputs, [change], distance(KL()))
    monkeypatch.setattr(effects, "_OUTPUT_NUMBERS", 400)
    torch.testing.assert_close(read_effects(tiny_features.engine, inputs, [change], distance(KL())), whole)


def test_tiny_steps_of_a_single_precision_model_are_quadratic_and_never_negative(tiny_tokens):
    """KL of a step is proportional to its square: rounding would drown steps this short."""
    model = hooked_transformer(dtype=torch.float32)
    call = {"n_features": 2, "l0": 1, "steps": 3, "progress": False}
    features = pf.decompose(model, "blocks.1.mlp.W_out", tiny_tokens, **call)
    inputs = read_inputs(features.engine.adapter, tiny_tokens[:5], None)
    changes = [deltas_of(features.v_out, {0: step}, features.engine.subset) for step in (1e-3, 1e-2)]
    short, long = read_effects(features.engine, inputs, changes, distance(KL()))
    assert short.min() >= 0
    torch.testing.assert_close(long.sum() / short.sum(), torch.tensor(100.0, dtype=torch.float64), rtol=0.1, atol=0)


def test_distances_and_mean_values():
    before, after = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, q = before.log_softmax(1), after.log_softmax(1)
    torch.testing.assert_close(distance(KL())(before, after), (p.exp() * (p - q)).sum(1))
    for divergence in (SquaredError(), Sum()):
        torch.testing.assert_close(distance(divergence)(before, after), (after - before).square().sum(1))
    references = torch.rand(5, 3)
    expected = torch.stack([SquaredError().value(after, r.expand_as(after).double()) for r in references]).mean(0)
    torch.testing.assert_close(Question(SquaredError(), "given", references).value(after), expected)


def test_padding_is_left_out(tiny_hooked, tiny_features, tiny_tokens):
    mask = torch.ones_like(tiny_tokens[:3])
    mask[1, 4:] = 0
    given = {"input_ids": tiny_tokens[:3], "attention_mask": mask}
    with torch.no_grad():
        found = outputs_of(tiny_features.engine, read_inputs(tiny_features.engine.adapter, given, None))
        torch.testing.assert_close(found[10:14], tiny_hooked(tiny_tokens[[1], :4])[0])
    assert found.shape == (24, 20)
