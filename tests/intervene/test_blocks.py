"""A block that is dropped without having been entered says that it did nothing."""

import gc
import warnings

import pytest

import param_features as pf
from param_features.errors import ModelStateError, Notice

MAKERS = {
    "steer": lambda features: features.steer({1: 5.0}),
    "steer where": lambda features: features.steer({1: 5.0}, where=[True]),
    "ablate": lambda features: features.ablate([1]),
    "alone": lambda _: pf.alone(),
}


@pytest.mark.parametrize("name", MAKERS)
def test_dropped_unentered_it_warns_at_the_users_line(tiny_features, name):
    with pytest.warns(Notice, match="was not entered, so nothing was changed. Write: with ") as caught:
        MAKERS[name](tiny_features)
        gc.collect()
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize("name", ["steer", "alone"])
def test_entered_or_read_it_does_not(tiny_features, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        block = MAKERS[name](tiny_features)
        with block:
            assert repr(block).endswith("entered") and "not entered" not in repr(block)
        del block
        assert tiny_features.ablate([1]).coefficients
        gc.collect()


@pytest.mark.parametrize("name", MAKERS)
def test_its_repr_says_that_it_waits(tiny_features, name):
    block = MAKERS[name](tiny_features)
    assert "not entered; write: with " in repr(block)
    block._is_used = True


def test_left_more_often_than_entered_is_refused_by_name():
    block = pf.alone()
    block._is_used = True
    with pytest.raises(ModelStateError, match="left more often than entered"):
        block.__exit__(None, None, None)
