"""The induction toy: its rows by definition, what it has learned, what tells its one label, and what is refused."""

import sys
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.induction import draw_rows, foretold_losses
from param_features.errors import MissingExtraError, SettingError, ToyError
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


def places(mask):
    return [pos for pos, is_there in enumerate(mask) if is_there]


def spans(rows, row):
    """First and last position of the repeated and of the mirrored segment."""
    lasts = set(places(rows.last[row].tolist()))
    for mask in (rows.repeated, rows.mirrored):
        found = places(mask[row].tolist())
        assert found == list(range(found[0], found[-1] + 1))
        assert found[-1] + 1 in lasts
        yield found[0], found[-1] + 1


def test_a_segment_of_small_letters_comes_again_as_it_was_and_backwards_in_capitals(drawn):
    assert (drawn.tokens[:, 0] == 48).all() and (drawn.tokens[:, 1:] < 48).all()
    for row, tokens in enumerate(drawn.tokens.tolist()):
        (copy, copy_end), (mirror, mirror_end) = spans(drawn, row)
        segment = tokens[copy : copy_end + 1]
        source = tokens.index(segment[0])
        assert 6 <= len(segment) <= 8 and max(segment) < 24
        assert tokens[source : source + len(segment)] == segment
        assert [letter - 24 for letter in tokens[mirror : mirror_end + 1]] == segment[::-1]
        assert source + len(segment) <= min(copy, mirror)
        again = {*range(copy, copy_end + 1), *range(mirror, mirror_end + 1)}
        fresh = [token % 24 for pos, token in enumerate(tokens) if pos and pos not in again]
        assert len(set(fresh)) == len(fresh)


def test_either_segment_comes_first_anywhere_and_capitals_lie_about(drawn):
    is_mirror_first = drawn.mirrored.double().argmax(1) < drawn.repeated.double().argmax(1)
    assert 0.4 < is_mirror_first.double().mean() < 0.6
    for mask in (drawn.repeated, drawn.mirrored):
        assert mask[:, 7:-1].any(0).all()
        assert not mask[:, :7].any()
    is_loose_capital = (drawn.tokens >= 24) & ~drawn.known & ~drawn.last
    assert is_loose_capital[:, 1:].any(1).double().mean() > 0.5


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
    assert toy.counted.sum(1).unique().tolist() == [22]
    assert not torch.equal(toy.inputs[:50], toy.probes[:50])


def untrained_toy(n_rows=60, n_probes=60):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("benchmarks.toys.induction"), "_LOW", float("inf"))
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
    with pytest.raises(ToyError, match=r"After 3 starts the loss on foretold tokens is [34]\.\d\d nats; 0.3 or less"):
        toys.induction(n_steps=1)
    assert not list(cache.iterdir())


def test_checkpoints_lead_from_the_start_that_learned_to_the_toys_own_weights(cache, monkeypatch):
    hooked_classes()
    module = import_module("benchmarks.toys.induction")
    built, build = [], module.build_hooked
    monkeypatch.setattr(module, "build_hooked", lambda *args, **kwargs: built.append(build(*args, **kwargs)) or built[-1])
    for run in ("toy", "checkpoints"):
        starts = iter([(9.0, 0.1), (0.1, 0.1)])  # the first start is no success, the second one is
        monkeypatch.setattr(module, "foretold_losses", lambda *args, starts=starts: next(starts))
        if run == "toy":
            toy = toys.induction(n_steps=5, n_rows=2, n_probes=2)
        else:
            built.clear()
            found = toys.induction_checkpoints(n_steps=5, every=2)
    assert list(found) == [0, 2, 4, 5]
    names = set(dict(toy.model.named_parameters()))
    assert all(set(weights) == names for weights in found.values())
    for name, parameter in toy.model.named_parameters():
        assert torch.equal(found[5][name], parameter)
    assert len(built) == 2
    key = "blocks.1.attn.W_K"
    assert not any(torch.equal(found[one][key], found[two][key]) for one, two in ((0, 2), (2, 4), (4, 5)))
    again = toys.induction_checkpoints(n_steps=5, every=2)
    assert len(built) == 2 and torch.equal(again[2][key], found[2][key])
    with pytest.raises(SettingError, match="'every': 0"):
        toys.induction_checkpoints(every=0)


@pytest.mark.parametrize("bad", [{"n_steps": 0}, {"n_probes": 0}, {"d_model": 33}])
def test_settings_out_of_range_are_refused(bad):
    with pytest.raises(SettingError, match="multiple of n_heads"):
        toys.induction(**bad)


def test_a_library_without_the_model_is_named(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_lens", None)
    with pytest.raises(MissingExtraError, match=r"HookedTransformer, which TransformerLens 3 has.*pip install"):
        toys.induction(seed=3)


@pytest.mark.release
def test_features_fire_on_repeated_tokens_and_controls_do_not(cache):
    hooked_classes()
    toy = toys.induction()
    assert max(foretold_losses(toy.model, torch.Generator().manual_seed(5))) < 0.3
    features = toy.decompose()
    numbers = toy.score(features).numbers
    assert numbers["auroc"] >= 0.9
    assert numbers["auroc_random"] < 0.9
    assert numbers["auroc_norm"] < 0.9
    assert numbers["auroc_shuffled"] < 0.8
    rows = draw_rows(len(toy.probes), torch.Generator().manual_seed(9))
    at_work = replace(toy, probes=rows.tokens, labels={"repeated": rows.repeated}, counted=rows.known)
    assert 0.3 < at_work.score(features).numbers["auroc_norm"] < 0.7  # gradients are as large in mirror images


@pytest.mark.slow
def test_without_training_nothing_tells_repeated_tokens(cache):
    hooked_classes()
    toy = untrained_toy(n_rows=300, n_probes=128)
    numbers = toy.score(toy.decompose(steps=100)).numbers
    assert numbers["auroc"] < 0.75
    assert numbers["auroc_norm"] < 0.75
