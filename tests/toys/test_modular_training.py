"""The modular toy's training: the fast forward against the model, checkpoints, the cache, masks that hold."""

import inspect

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks import toys
from param_features.errors import InputError, SettingError, UnknownParameterError
from param_features.toys.modular_model import TRAINED, masked, modular_logits, sums
from param_features.toys.modular_toy import all_pairs
from tests.models import hooked_classes, hooked_transformer

SMALL = {"d_model": 16, "d_mlp": 32, "n_steps": 60, "every": 25, "train_share": 0.6}
W_IN = "blocks.0.mlp.W_in"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PARAM_FEATURES_CACHE", str(tmp_path_factory.mktemp("toys")))
        toys.modular_training.cache_clear()
        yield
        toys.modular_training.cache_clear()


@pytest.fixture(scope="module")
def training(folder):
    hooked_classes()
    return toys.modular_training(7, **SMALL)


def test_logits_are_those_of_the_model(training):
    sizes = {"n_layers": 1, "n_heads": 4, "d_head": 4, "d_vocab": 8, "d_vocab_out": 7, "n_ctx": 3, "act_fn": "relu"}
    model = hooked_transformer(**sizes, normalization_type=None)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in TRAINED:
                parameter.zero_()
        pairs = all_pairs(7)
        assert torch.allclose(modular_logits(model.state_dict(), pairs), model(pairs)[:, -1], atol=1e-10)


def test_checkpoints_are_scored_by_the_model_itself(training):
    assert training.steps == (0, 25, 50, 60)
    for state, losses, accuracies in zip(training.states, training.losses, training.accuracies, strict=True):
        training.toy.model.load_state_dict(state)
        for column, rows in enumerate((training.train, training.test)):
            with torch.no_grad():
                logits, answers = training.toy.model(rows)[:, -1], (rows[:, 0] + rows[:, 1]) % 7
            assert float(losses[column]) == pytest.approx(float(cross_entropy(logits, answers)), abs=1e-5)
            assert float(accuracies[column]) == pytest.approx(float((logits.argmax(1) == answers).double().mean()))
    assert training.losses[-1, 0] < 0.9 * training.losses[0, 0]
    rows = {tuple(row) for row in torch.cat([training.train, training.test]).tolist()}
    assert len(rows) == 49 and len(training.train) == 29


def test_one_step_is_that_of_plain_adamw(training):
    """The oracle: the model itself, autograd through it, AdamW on what is trained."""
    found = training.retrained({}, n_steps=1).states[-1]
    model = training.toy.model
    model.load_state_dict(training.states[0])
    weights = [parameter for name, parameter in model.named_parameters() if name in TRAINED]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, betas=(0.9, 0.98), weight_decay=2.0)  # a tenth: the first of ten steps
    cross_entropy(model(training.train)[:, -1], sums(training.train)).backward()
    optimizer.step()
    model.zero_grad()
    for name in TRAINED:
        assert torch.allclose(found[name], model.state_dict()[name], atol=1e-6), name


def test_the_second_call_reads_the_file(training, monkeypatch):
    toys.modular_training.cache_clear()
    monkeypatch.setitem(inspect.unwrap(toys.modular_training).__globals__, "trained", None)  # training again would fail
    again = toys.modular_training(7, **SMALL)
    assert again.steps == training.steps
    assert all(torch.equal(again.states[2][name], training.states[2][name]) for name in TRAINED)


def test_masked_entries_are_zero_from_first_to_last(training):
    mask = torch.rand(training.states[0][W_IN].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    again = training.retrained({W_IN: mask}, rewind=25, n_steps=20, every=10)
    assert again.steps == (0, 10, 20)
    assert torch.equal(again.states[0][W_IN], training.states[1][W_IN] * mask)
    for state in again.states:
        assert not state[W_IN][~mask].any() and state[W_IN][mask].all()
    assert torch.equal(again.train, training.train)
    assert training.retrained({}, until=0.0).steps == (0,)
    loss, accuracy = training.pruned({W_IN: mask})
    logits = modular_logits(masked(training.states[-1], {W_IN: mask}), training.test)
    assert loss == pytest.approx(float(cross_entropy(logits, sums(training.test))))
    assert training.pruned({}) == pytest.approx((float(training.losses[-1, 1]), float(training.accuracies[-1, 1])))
    assert 0 <= accuracy <= 1


def test_the_first_step_with_an_accuracy(training):
    assert training.first_step(0.0) == 0
    assert training.first_step(1.01) is None
    reached = training.first_step(float(training.accuracies[-1, 0]), on="train")
    assert reached is not None and reached <= 60
    with pytest.raises(SettingError, match="Accepted: 'train', 'test'"):
        training.first_step(0.5, on="all")
    assert "29 pairs trained on" in repr(training)


def test_what_is_refused(training):
    with pytest.raises(SettingError, match="rewind=10 is no checkpoint. Accepted: 0, 25"):
        training.retrained({}, rewind=10)
    with pytest.raises(SettingError, match="every=0 must be positive"):
        training.retrained({}, every=0)
    with pytest.raises(UnknownParameterError, match="nearest: 'blocks.0.mlp.W_in'"):
        training.pruned({"blocks.0.mlp.W": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(InputError, match="Give bools of shape"):
        training.pruned({W_IN: torch.ones(16, 32)})
    for bad in ({"train_share": 1.0}, {"every": 0}, {"p": 9}):
        with pytest.raises(SettingError, match=next(iter(bad))):
            toys.modular_training(**bad)
