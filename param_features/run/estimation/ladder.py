"""How long many take, from how long a few take."""

from collections.abc import Callable
from dataclasses import dataclass

_LONG = 8
"""A first size that takes so many budgets is not followed by a second."""


@dataclass(frozen=True)
class Ladder:
    """Runs some work at growing sizes for a short while, and extends the line through the last two.

    Attributes:
        clock: Gives seconds.
        budget: Seconds after which no larger size is tried, once there are two.
    """

    clock: Callable[[], float]
    budget: float = 0.15

    def seconds(self, work: Callable[[int], object], full: int, *, least: int = 1, runs: int = 1, growth: int = 2) -> float:
        """Seconds of `work(full)`; the first run, at the smallest size, is a warm-up and is counted only if it is long.

        Args:
            work: Does so many.
            full: How many the real run does at once.
            least: The smallest size to try.
            runs: How often each size is run, of which the shortest time counts.
            growth: From one size to the next.
        """
        if full <= 0:
            return 0.0
        size = min(full, least)
        first = self.timed(work, size)
        if first > _LONG * self.budget:
            return extended([(size, first)], full)
        timings = [(size, min(self.timed(work, size) for _ in range(runs)))]
        while size < full and (len(timings) < 2 or timings[-1][1] < self.budget):
            size = min(full, growth * size)
            timings.append((size, min(self.timed(work, size) for _ in range(runs))))
        return extended(timings, full)

    def beyond_fixed(self, work: Callable[[int], object], full: int, *, least: int, more: int) -> tuple[float, float]:
        """Seconds that `work` takes whatever the size, and those that come with the size `full`, from two sizes."""
        least, more = min(full, least), min(full, more)
        fixed, seconds = self.timed(work, least), self.timed(work, more)
        return fixed, max(0.0, seconds - fixed) * (full - least) / max(1, more - least)

    def timed(self, work: Callable[[int], object], size: int) -> float:
        """How many seconds one run takes."""
        start = self.clock()
        work(size)
        return self.clock() - start


def extended(timings: list[tuple[int, float]], full: int) -> float:
    """The line through the last two of (size, seconds), or through the origin and the only one, at a larger size."""
    size, seconds = timings[-1]
    before, earlier = timings[-2] if len(timings) > 1 else (0, 0.0)
    slope = max(0.0, (seconds - earlier) / (size - before))
    return seconds + min(slope, seconds / size) * (full - size)
