"""How often `change_points` sees a change in pure noise, and finds a planted one: `python -m benchmarks.change_points`.

Curves whose log is Gaussian noise of standard deviation 0.2, alone or with a jump in their middle third; seed 0.
"""

import torch

from param_features.development.phases import change_points

_NOISE, _CURVES = 0.2, 1000


def shares(n: int, jump: float, slope: float, generator: torch.Generator) -> tuple[float, float]:
    """Share of curves of n values with any change, and with one change alone, within one value of the jump."""
    n_any = n_right = 0
    for _ in range(_CURVES):
        place = int(torch.randint(n // 3, 2 * n // 3 + 1, (), generator=generator))
        values = torch.randn(n, generator=generator, dtype=torch.float64) + slope * torch.arange(n)
        values[place:] += jump
        found = change_points((_NOISE * values).exp())
        n_any += bool(found)
        n_right += len(found) == 1 and abs(found[0] - place) <= 1
    return n_any / _CURVES, n_right / _CURVES


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print(f"{'values':>6} {'noise alone':>12} {'jump of 5':>10} {'jump of 10':>11} {'on a slope':>11}")  # noqa: T201
    for n in (8, 12, 20, 40, 80):
        generator = torch.Generator().manual_seed(0)
        alone = shares(n, 0, 0, generator)[0]
        five, ten, sloped = (shares(n, jump, slope, generator)[1] for jump, slope in ((5, 0), (10, 0), (10, 0.1)))
        print(f"{n:>6} {alone:>12.1%} {five:>10.1%} {ten:>11.1%} {sloped:>11.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
