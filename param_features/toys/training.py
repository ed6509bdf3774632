"""Training toys: seeded, with another start where a model has not learned every feature."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from param_features.errors import ToyError

ATTEMPTS = 20


def trained(
    build: Callable[[], nn.Module],
    draw: Callable[[torch.Generator], tuple[Tensor, Tensor]],
    generator: torch.Generator,
    *,
    n_steps: int,
    lr: float = 5e-3,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss,
) -> nn.Module:
    """A model after `n_steps` of Adam under a cosine schedule, in evaluation mode. The user's generator is left alone.

    Args:
        build: Makes a model with random initial weights.
        draw: Draws a batch of inputs and targets.
        generator: Of the initial weights and the batches.
        n_steps: Training steps.
        lr: The first learning rate.
        loss: Of (output, target).
    """
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            x, target = draw(generator)
            value = loss(model(x), target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def first_complete(
    start: Callable[[], nn.Module], n_left_out: Callable[[nn.Module], int], n_true: int, advice: str
) -> nn.Module:
    """The first of up to 20 trained models that leaves no feature out.

    Args:
        start: Trains a model from another start each time.
        n_left_out: How many features a model has not learned.
        n_true: How many there are.
        advice: What to ask for instead, where none has learned them all.

    Raises:
        ToyError: None has.
    """
    fewest = n_true
    for _ in range(ATTEMPTS):
        model = start()
        with torch.no_grad():
            n_missing = n_left_out(model)
        if not n_missing:
            return model
        fewest = min(fewest, n_missing)
    raise ToyError(f"After {ATTEMPTS} starts, at least {fewest} of {n_true} features are left out. {advice}")


def sparse_uniform(n: int, n_features: int, probability: float, generator: torch.Generator) -> Tensor:
    """Inputs [n, n_features] that have each feature with a probability, its size uniform in [0, 1]."""
    is_there = torch.rand(n, n_features, generator=generator) < probability
    return torch.rand(n, n_features, generator=generator) * is_there
