"""The induction toy: its rows by definition, what it has learned, what tells its one label, and what is refused."""

import sys
from importlib import import_module

import pytest
import torch

from param_features import toys
from param_features.errors import MissingExtraError, SettingError, ToyError
from param_features.toys.induction import draw_rows, repeat_loss
from tests.models import hooked_classes


@pytest.fixture(scope="module")
def drawn():
    return draw_rows(400, torch.Generator().manual_seed(0))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PARAM_FEATURES_CACHE", str(tmp_path))
    toys.induction.cache_clear()
    yield tmp_path
    toys.induction.cache_clear()


def test_a_row_is_drawn_without_repetition_but_for_one_copied_segment(drawn):
    rows, is_copy, is_last = drawn
    assert (rows[:, 0] == 40).all() and (rows[:, 1:] < 40).all()
    for row, copied, last in zip(rows.tolist(), is_copy.tolist(), is_last.tolist(), strict=True):
        places = [pos for pos, is_there in enumerate(copied) if is_there]
        fresh = [token for token, is_there in zip(row, copied, strict=True) if not is_there]
        assert len(set(fresh)) == len(fresh)
        assert [pos for pos, is_there in enumerate(last) if is_there] == places[-1:]
        if places:
            assert places == list(range(places[0], places[-1] + 1))
            assert 8 <= len(places) <= 16
            source = row.index(row[places[0]])
            assert row[source : source + len(places)] == [row[pos] for pos in places]
            assert source + len(places) <= places[0]


def test_every_second_row_has_a_copy_and_copies_lie_anywhere(drawn):
    _, is_copy, _ = drawn
    assert 0.4 < is_copy.any(1).double().mean() < 0.6
    assert is_copy[:, 9:].any(0).all()
    assert not is_copy[:, :9].any()


def test_a_label_needs_a_foretold_successor(cache):
    hooked_classes()
    toy = untrained_toy()
    repeated, rows = toy.labels["repeated"], toy.probes
    for row, pos in repeated.nonzero().tolist():
        earlier = rows[row].tolist().index(int(rows[row, pos]))
        assert earlier < pos
        assert rows[row, earlier + 1] == rows[row, pos + 1]
    assert not (repeated & ~toy.counted).any()
    assert not toy.counted[:, 0].any()
    assert not torch.equal(toy.inputs[:50], toy.probes[:50])


def untrained_toy(n_rows=60, n_probes=60):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("param_features.toys.induction"), "_LOW", float("inf"))
        return toys.induction(n_steps=1, n_rows=n_rows, n_probes=n_probes)


def test_the_same_arguments_give_the_same_toy_also_from_disk_and_the_users_generator_is_left_alone(cache):
    hooked_classes()
    before = torch.get_rng_state()
    first = untrained_toy()
    assert torch.equal(torch.get_rng_state(), before)
    assert untrained_toy() is first
    toys.induction.cache_clear()
    again = untrained_toy()
    assert again is not first
    assert len(list(cache.iterdir())) == 1
    assert torch.equal(first.inputs, again.inputs)
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_model_that_has_not_learned_is_refused_and_not_kept(cache):
    hooked_classes()
    with pytest.raises(ToyError, match=r"After 3 starts the loss on repeated tokens is 3\.\d\d nats; 0.3 or less"):
        toys.induction(n_steps=1)
    assert not list(cache.iterdir())


@pytest.mark.parametrize("bad", [{"n_steps": 0}, {"n_probes": 0}, {"d_model": 33}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match="multiple of n_heads"):
        toys.induction(**bad)


def test_a_library_without_the_model_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(MissingExtraError, match=r"HookedTransformer, which TransformerLens 3 has.*pip install"):
        toys.induction(seed=3)


@pytest.mark.slow
def test_features_fire_on_repeated_tokens_and_so_does_the_norm_but_not_shuffled_labels(cache):
    hooked_classes()
    toy = toys.induction()
    assert repeat_loss(toy.model, torch.Generator().manual_seed(5)) < 0.3
    numbers = toy.score(toy.decompose()).numbers
    assert numbers["auroc"] >= 0.9
    assert numbers["auroc_norm"] >= 0.9  # where heads rest their gradient vanishes: the label is no test of directions
    assert numbers["auroc_shuffled"] < 0.8


@pytest.mark.slow
def test_without_training_nothing_tells_repeated_tokens(cache):
    hooked_classes()
    toy = untrained_toy(n_rows=300, n_probes=128)
    numbers = toy.score(toy.decompose(steps=100)).numbers
    assert numbers["auroc"] < 0.75
    assert numbers["auroc_norm"] < 0.75
