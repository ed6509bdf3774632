"""The demo stories as a toy: whose labels they are, which rules a fit tells, and what random directions tell."""

import pytest
import torch

from benchmarks import toys
from param_features import demo
from param_features.demo.vocabulary import EOS
from param_features.errors import SettingError


@pytest.fixture(scope="module", autouse=True)
def _library():
    pytest.importorskip("transformer_lens")


def test_labels_are_the_grammars_rules_in_stories_that_no_fit_sees():
    toy = toys.stories(n_rows=20, n_probes=30, seed=1)
    assert set(toy.labels) == set(demo.RULES)
    assert all(mask.shape == toy.probes.shape == (30, 64) for mask in toy.labels.values())
    assert toy.counted.all()
    fitted = {tuple(row) for row in toy.inputs.tolist()}
    assert not any(tuple(row) in fitted for row in toy.probes.tolist())
    is_end = toy.probes[:, 1:] == toy.model.tokenizer.convert_tokens_to_ids(EOS)
    labelled = toy.labels["end-of-story"][:, :-1]
    assert labelled.any() and not (labelled & ~is_end).any()


def test_another_seed_draws_other_stories_and_the_same_model():
    one, two = (toys.stories(n_rows=8, n_probes=8, seed=seed) for seed in (0, 1))
    assert not torch.equal(one.inputs, two.inputs)
    for first, second in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(first, second)
    assert toys.stories(n_rows=8, n_probes=8, seed=0) is one


@pytest.mark.parametrize("bad", [{"n_rows": 1}, {"n_probes": 1}])
def test_too_few_rows_are_refused(bad):
    with pytest.raises(SettingError, match=f"{next(iter(bad))}=1"):
        toys.stories(**bad)


@pytest.mark.release
def test_features_tell_rules_that_random_directions_do_not():
    toy = toys.stories(n_rows=600)
    scores = toy.score(toy.decompose(n_samples=4000, steps=200))
    numbers = scores.numbers
    assert numbers["told"] >= 8
    assert numbers["told"] > numbers["told_random"]
    assert numbers["auroc"] > numbers["auroc_random"]
    assert numbers["told_alone"] >= 3
    assert numbers["told_shuffled"] == 0
    assert numbers["told_norm"] <= 4
    assert scores.told_alone == tuple(
        name for name, area in scores.auroc.items() if area >= 0.9 and scores.controls["random"][name] < 0.9
    )
