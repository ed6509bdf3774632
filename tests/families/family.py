"""A family of models: how to build one with random weights, and what to run it on."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.models import randomised

D_VOCAB = 20


@dataclass(frozen=True)
class Family:
    """One row of the table of model families.

    Attributes:
        name: As users call it.
        group: The table that it stands in.
        build: Makes a tiny model; the same weights every time.
        data: Inputs for a number of rows, as `pf.decompose` takes them; the same every time.
        param: The parameter that features are fitted to.
        common: Whether it is tested at every change, rather than before a release.
        rounding: Largest relative gap between two right gradients: some models compute in float32 whatever they are given.
    """

    name: str
    group: str
    build: Callable[[], Any]
    data: Callable[[int], dict[str, Any]]
    param: str
    common: bool = False
    rounding: float = 1e-9

    def model(self) -> Any:
        """A new model, in float64 and evaluation mode."""
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore")  # the libraries' own notices while they build
            torch.manual_seed(0)
            return self.build()


def noisy(model: nn.Module, *, scale: float = 0.1, dtype: torch.dtype = torch.float64) -> nn.Module:
    """With noise on every parameter, so that no gain is 1 and no bias 0."""
    return randomised(model, scale=scale).to(dtype)


def ids(*shape: int, low: int = 3, high: int = D_VOCAB) -> Tensor:
    """Token ids above the usual special ones."""
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1))


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def tokens(n_rows: int) -> dict[str, Tensor]:
    """Rows of six tokens."""
    return {"tokens": ids(n_rows, 6)}
