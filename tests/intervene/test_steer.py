"""Steering: the weights inside the block are W + Σ δ v, and every bit of W is back after any way out."""

import signal
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from param_features.errors import FeatureCountError, NotBoundError, SettingError
from param_features.files.bundle import read_bundle
from tests.exits import EXITS, leave, leaving_by

W_K = "blocks.0.attn.W_K"


def weight(model):
    return model.blocks[0].attn.W_K


def own_bytes(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_own(model, before):
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def moved(features, coefficients):
    return sum(delta * features.direction(feature)[W_K] for feature, delta in coefficients.items())


@pytest.mark.parametrize("error", EXITS)
def test_the_weights_are_moved_inside_and_back_outside(tiny_hooked, tiny_features, error):
    before, own = own_bytes(tiny_hooked), weight(tiny_hooked).detach().clone()
    with leaving_by(error), tiny_features.steer({1: 0.5, 4: -2.0}):
        torch.testing.assert_close(weight(tiny_hooked).detach(), own + moved(tiny_features, {1: 0.5, 4: -2.0}))
        leave(error)
    assert_own(tiny_hooked, before)


def test_a_real_interrupt_restores(tiny_hooked, tiny_features):
    before = own_bytes(tiny_hooked)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's children ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt), tiny_features.steer({0: 1.0}):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert_own(tiny_hooked, before)


@pytest.mark.parametrize("n_calls_before", range(1, 5))
def test_an_interrupt_in_the_restoration_lets_it_finish(tiny_hooked, tiny_features, monkeypatch, n_calls_before):
    """Ctrl-C may fall between any two lines of it; here, at the n-th look into the table of edits."""
    from param_features.params import edits

    class Table(dict):
        calls = 0

        def get(self, *args):
            self.calls += 1
            if armed and self.calls == n_calls_before:
                raise KeyboardInterrupt
            return super().get(*args)

    armed, before, table = [], own_bytes(tiny_hooked), Table()
    monkeypatch.setattr(edits, "_EDITED", table)
    try:
        with tiny_features.steer({0: 1.0}), tiny_features.steer({1: 1.0}):
            armed.append(1)
            table.calls = 0
    except KeyboardInterrupt:
        pass
    assert_own(tiny_hooked, before)
    assert not table


def test_nested_blocks_add_up_and_may_end_in_any_order(tiny_hooked, tiny_features):
    before, own = own_bytes(tiny_hooked), weight(tiny_hooked).detach().clone()
    outer, inner = tiny_features.steer({1: 0.5}), tiny_features.steer({2: 3.0})
    outer.__enter__()
    inner.__enter__()
    torch.testing.assert_close(weight(tiny_hooked).detach(), own + moved(tiny_features, {1: 0.5, 2: 3.0}))
    outer.__exit__(None, None, None)
    torch.testing.assert_close(weight(tiny_hooked).detach(), own + moved(tiny_features, {2: 3.0}))
    inner.__exit__(None, None, None)
    assert_own(tiny_hooked, before)


def test_one_steering_may_be_entered_again_also_inside_itself(tiny_hooked, tiny_features):
    before, own = own_bytes(tiny_hooked), weight(tiny_hooked).detach().clone()
    steering = tiny_features.steer({1: 0.5})
    for _ in range(2):
        with steering, steering:
            torch.testing.assert_close(weight(tiny_hooked).detach(), own + moved(tiny_features, {1: 1.0}))
        assert_own(tiny_hooked, before)
    with pytest.raises(RuntimeError, match="left more often than entered"):
        steering.__exit__(None, None, None)


def test_what_changes_the_weights_meanwhile_is_undone(tiny_hooked, tiny_features):
    before = own_bytes(tiny_hooked)
    with tiny_features.steer({1: 0.5}), torch.no_grad():
        weight(tiny_hooked).add_(1.0)
    assert_own(tiny_hooked, before)


def test_it_works_under_inference_mode(tiny_hooked, tiny_features, tiny_tokens):
    before = own_bytes(tiny_hooked)
    with tiny_features.steer({1: 0.5}), torch.no_grad():
        expected = tiny_hooked(tiny_tokens[:2])
    with torch.inference_mode(), tiny_features.steer({1: 0.5}):
        assert torch.equal(tiny_hooked(tiny_tokens[:2]), expected)
    assert_own(tiny_hooked, before)
    assert not weight(tiny_hooked).is_inference()


def test_half_precision_weights_come_back_and_are_rounded_once(tiny_hooked, tiny_features, tiny_tokens):
    import copy

    import param_features as pf

    half = copy.deepcopy(tiny_hooked).to(torch.bfloat16)
    features = pf.decompose(half, W_K, tiny_tokens, n_features=3, l0=1, steps=3, progress=False)
    own = weight(half).detach().clone()
    with features.steer({0: 1e-3}), features.steer({0: 1e-3}):
        exact = own.float() + 2e-3 * features.direction(0)[W_K]
        assert torch.equal(weight(half).detach(), exact.to(torch.bfloat16))
    assert torch.equal(weight(half).detach(), own)


def test_the_outputs_change_as_activations_foretell(tiny_hooked, tiny_features, tiny_tokens):
    """First order: D moves by δ times the mean activation; central differences in float64."""
    tokens, step = tiny_tokens[:3], 1e-4
    divergence, references = tiny_features.divergence, tiny_features.references
    acts = tiny_features.activations(tokens)

    def value():
        with torch.no_grad():
            output = tiny_hooked(tokens).flatten(0, 1)
        return torch.stack([divergence.value(output, r.expand_as(output)) for r in references.to(output)]).mean(0)

    for feature in range(3):
        with tiny_features.steer({feature: step}):
            up = value()
        with tiny_features.steer({feature: -step}):
            down = value()
        torch.testing.assert_close(((up - down) / (2 * step)).view(3, -1), acts[..., feature].to(up), rtol=1e-4, atol=1e-6)


def test_activations_inside_a_block_are_those_of_the_steered_model(tiny_features, tiny_hooked, tiny_tokens):
    plain = tiny_features.activations(tiny_tokens[:2])
    with tiny_features.steer({0: 2.0}):
        assert not torch.allclose(tiny_features.activations(tiny_tokens[:2]), plain)
    assert torch.equal(tiny_features.activations(tiny_tokens[:2]), plain)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["steer", "weight", "noise", "exit", "error"]),
        st.integers(0, 5),
        st.floats(-3, 3, allow_nan=False),
    ),
    max_size=8,
)


@pytest.mark.slow
@given(steps=_STEPS)
@settings(max_examples=150, deadline=None)
def test_random_sequences_leave_every_byte(tiny_hooked, tiny_features, steps):
    """Blocks of all kinds, left in any order, some by an error; at each step the weights are own plus what is open."""
    own, opened = weight(tiny_hooked).detach().clone(), []
    with ExitStack() as last_resort:
        for kind, number, delta in steps:
            if kind in ("exit", "error"):
                if opened:
                    error = ZeroDivisionError() if kind == "error" else None
                    opened.pop(number % len(opened)).__exit__(type(error) if error else None, error, None)
            else:
                found = tiny_features.steer({number: delta, (number + 1) % 6: 1.0})
                if kind != "steer":
                    found = tiny_features.ablate([number], rule=kind, seed=number)
                found.__enter__()
                opened.append(found)
            expected = own + sum(moved(tiny_features, block.coefficients) for block in opened)
            torch.testing.assert_close(weight(tiny_hooked).detach(), expected)
        for block in opened:
            last_resort.callback(block.__exit__, None, None, None)
    assert torch.equal(weight(tiny_hooked).detach(), own)


@pytest.mark.parametrize(
    ("wrong", "error", "help"),
    [
        ({}, SettingError, "Give features with their step lengths"),
        (3, SettingError, "Give features with their step lengths"),
        ({3: float("nan")}, SettingError, "Give a finite number"),
        ({3: "1"}, SettingError, "Give a finite number"),
        ({3: True}, SettingError, "Give a finite number"),
        ({6: 1.0}, FeatureCountError, "numbered 0 to 5"),
        ({-1: 1.0}, FeatureCountError, "numbered 0 to 5"),
    ],
)
def test_wrong_coefficients_are_refused_before_anything_changes(tiny_hooked, tiny_features, wrong, error, help):
    before = own_bytes(tiny_hooked)
    with pytest.raises(error, match=help):
        tiny_features.steer(wrong)
    assert_own(tiny_hooked, before)


def test_numbers_of_other_libraries_are_read(tiny_features):
    import numpy

    given = {0: numpy.float32(0.5), 1: torch.tensor(0.25), 2: 2}
    assert tiny_features.steer(given).coefficients == {0: 0.5, 1: 0.25, 2: 2.0}


def test_features_without_a_model_are_refused(tiny_features, tmp_path):
    import param_features as pf

    tiny_features.save_pretrained(tmp_path / "f")
    assert read_bundle(tmp_path / "f")
    with pytest.raises(NotBoundError, match="model="):
        pf.load(tmp_path / "f").steer({0: 1.0})
