"""Digits: what features tell beside the controls."""

import sys

import pytest
import torch

from benchmarks import toys
from benchmarks.toys.digits import areas_by_digit
from param_features.errors import MissingExtraError, SettingError, ToyError


@pytest.fixture(scope="module")
def toy():
    pytest.importorskip("sklearn")
    return toys.digits()


def test_a_feature_is_chosen_on_one_half_and_measured_on_the_other():
    labels = torch.arange(400) // 2 % 10
    telling = torch.nn.functional.one_hot(labels, 10).float()
    assert torch.equal(areas_by_digit(telling, labels), torch.ones(10))
    telling[1::2] *= -1
    assert torch.equal(areas_by_digit(telling, labels), torch.zeros(10))


def test_the_model_is_accurate_on_images_that_it_has_not_seen(toy):
    with torch.no_grad():
        is_right = toy.model(toy.images).argmax(1) == toy.labels
    assert float(is_right.double().mean()) >= 0.95
    assert len(toy.images) + len(toy.inputs) == 1797


@pytest.mark.release
def test_features_tell_digits_better_than_random_directions_and_shuffled_labels_fail(toy):
    scores = toy.score(toy.decompose())
    assert scores.told >= 9
    assert scores.told > scores.told_random
    assert scores.auroc > scores.auroc_random + 0.02
    assert scores.told_shuffled == 0
    assert scores.error < scores.error_pca
    assert scores.numbers["told"] == scores.told
    assert "digits told" in repr(scores)


@pytest.mark.release
def test_one_feature_cannot_tell_ten_digits(toy):
    assert toy.score(toy.decompose(n_features=1, l0=1, steps=20)).told <= 3


def test_what_cannot_be_learned_or_loaded_is_refused(monkeypatch):
    with pytest.raises(SettingError, match="n_steps=0"):
        toys.digits(n_steps=0)
    monkeypatch.setattr("param_features.toys.training.ATTEMPTS", 2)
    if "sklearn" in sys.modules:
        with pytest.raises(ToyError, match="more n_steps"):
            toys.digits(n_steps=1)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"param_features\[toys\]"):
        toys.digits(seed=1)
