"""Shape annotations are checked while the tests run, in the first calls of each test, and anew in the next one."""

import pytest
import torch
from jaxtyping import TypeCheckError, jaxtyped

from param_features.fit.selection import threshold_for
from tests import N_CHECKED, N_INNER, check_anew, checked

WHOLE, UNEVEN = torch.tensor([[1, 3]]), torch.tensor([[1.0, 3.0]])


def test_the_first_calls_of_each_test_are_checked():
    with pytest.raises(TypeCheckError):
        threshold_for(WHOLE, 1.0)
    for _ in range(N_CHECKED):
        threshold_for(UNEVEN, 1.0)
    assert threshold_for(WHOLE, 1.0) == threshold_for(UNEVEN, 1.0) == 3
    check_anew()
    with pytest.raises(TypeCheckError):
        threshold_for(WHOLE, 1.0)


def test_of_a_function_inside_another_the_first_of_each_test_are_checked():
    def made():
        @jaxtyped(typechecker=checked)
        def inner(number: int) -> int:
            return number

        return inner

    for _ in range(N_INNER // 2):
        with pytest.raises(TypeCheckError):
            made()("one")
    assert made()("one") == "one"
    check_anew()
    with pytest.raises(TypeCheckError):
        made()("one")
