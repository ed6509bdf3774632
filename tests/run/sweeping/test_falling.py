"""What more steps are expected to bring, of histories whose future is known."""

import pytest

from param_features.run.sweeping.falling import expected_fall


def history(error, n: int = 100) -> list[float]:
    return [error((part + 0.5) / n) for part in range(n)]


@pytest.mark.parametrize("power", [0.3, 1.0])
def test_of_a_power_law_it_is_its_own_fall(power):
    """What is above the floor falls by the same factor with every doubling: from 0.43 to 0.86, and so to 1.72."""
    found = expected_fall(history(lambda done: 0.2 + 0.1 * done**-power, 1000))
    at = 0.2 + 0.1 * 0.427**-power
    assert found * at == pytest.approx(0.1 * (0.854**-power - 1.708**-power), rel=0.02)


def test_a_fit_that_has_arrived_falls_no_further():
    assert expected_fall([0.3] * 100) == 0
    assert expected_fall(history(lambda done: 0.3 + 0.6 * 2 ** (-40 * done))) < 1e-3
    assert expected_fall(history(lambda done: 0.3 + 0.01 * done)) == 0


def test_a_fall_that_grows_counts_once():
    """A straight line falls by twice as much with every doubling: its last fall is taken as it is, no more."""
    found = expected_fall(history(lambda done: 1 - done))
    assert found == pytest.approx((0.43 - 0.215) / (1 - 0.43), rel=0.05)


def test_the_second_half_of_the_steps_is_left_out():
    first = [1 - 0.005 * n for n in range(50)]
    assert expected_fall([*first, *[0.1] * 50]) == expected_fall([*first, *[0.7] * 50])


def test_a_short_history_tells_nothing():
    assert expected_fall([0.5] * 63) is None
    assert expected_fall([]) is None
    assert expected_fall([0.5] * 64) == 0
