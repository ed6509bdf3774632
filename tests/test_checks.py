"""Shape annotations are checked while the tests run, in the first calls of each test, and anew in the next one."""

import pytest
import torch
from jaxtyping import TypeCheckError

import param_features as pf
from tests import N_CHECKED, check_anew

WHOLE, UNEVEN = torch.tensor([1, 3]), torch.tensor([1.0, 3.0])


def test_the_first_calls_of_each_test_are_checked():
    with pytest.raises(TypeCheckError):
        pf.development.gini(WHOLE)
    for _ in range(N_CHECKED):
        pf.development.gini(UNEVEN)
    assert pf.development.gini(WHOLE) == pf.development.gini(UNEVEN) == 0.25
    check_anew()
    with pytest.raises(TypeCheckError):
        pf.development.gini(WHOLE)
