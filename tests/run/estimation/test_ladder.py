"""Extending short runs, told by a clock that the work itself moves."""

import pytest

from param_features.run.estimation.ladder import Ladder, extended


class Clock:
    """Stands still but for the work."""

    def __init__(self, fixed: float, each: float) -> None:
        self.now, self.fixed, self.each, self.sizes = 0.0, fixed, each, []

    def __call__(self) -> float:
        return self.now

    def work(self, n: int) -> None:
        self.sizes.append(n)
        self.now += self.fixed + self.each * n


@pytest.mark.parametrize(("fixed", "each"), [(0.0, 0.01), (0.02, 0.001), (0.1, 0.0)])
@pytest.mark.parametrize("full", [1, 3, 1000])
def test_a_line_is_found_from_a_short_part_of_it(fixed, each, full):
    clock = Clock(fixed, each)
    assert Ladder(clock).seconds(clock.work, full) == pytest.approx(fixed + each * full)
    assert clock.now < 2 + 4 * fixed


def test_long_work_is_run_once_at_the_smallest_size():
    clock = Clock(0.0, 10.0)
    assert Ladder(clock).seconds(clock.work, 1000, least=4) == pytest.approx(10_000)
    assert clock.sizes == [4]


def test_nothing_takes_no_time():
    clock = Clock(1.0, 1.0)
    assert Ladder(clock).seconds(clock.work, 0) == 0 and not clock.sizes


def test_fixed_and_growing_parts_are_told_apart():
    clock = Clock(3.0, 0.5)
    fixed, rest = Ladder(clock).beyond_fixed(clock.work, 1000, least=10, more=50)
    assert fixed == pytest.approx(8.0) and rest == pytest.approx(0.5 * 990)
    assert clock.sizes == [10, 50]


def test_a_larger_size_never_counts_less():
    assert extended([(1, 5.0), (2, 4.0)], 10) == 4.0  # noise: no falling line
    assert extended([(1, 0.0), (2, 4.0)], 10) == 20.0  # nor one steeper than through the origin
