"""Toy models of superposition over sparsity, many trained at once: which geometry do the features settle in?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import SettingError
from param_features.toys.tms import Tied
from param_features.toys.training import sparse_uniform

_N_MEASURED = 8192


@dataclass(frozen=True, eq=False)
class TiedModels:
    """y = ReLU(Wᵀ W x + b), trained at several probabilities from several starts.

    Attributes:
        probabilities: Of each feature in an input; sparsity is 1 less this.
        weights: W.
        biases: b.
        losses: On inputs that are the same for all starts; squared error weighted by importance, per feature that is there.
    """

    probabilities: tuple[float, ...]
    weights: Float[Tensor, "probability start d_hidden feature"]
    biases: Float[Tensor, "probability start feature"]
    losses: Float[Tensor, "probability start"]

    def model(self, place: int, start: int) -> Tied:
        """One of them as a module."""
        d_hidden, n_features = self.weights.shape[2:]
        with torch.random.fork_rng(devices=[]):
            model = Tied(n_features, d_hidden)
        with torch.no_grad():
            model.weight.copy_(self.weights[place, start])
            model.bias.copy_(self.biases[place, start])
        return model.eval()


def superposition_over_sparsity(
    probabilities: Sequence[float],
    n_features: int = 5,
    d_hidden: int = 2,
    *,
    importance: float = 0.8,
    n_starts: int = 8,
    n_steps: int = 3000,
    batch_size: int = 256,
    seed: int = 0,
) -> TiedModels:
    """Tied models of superposition, all trained together, every start kept: also those that leave features out.

    Feature i counts importanceⁱ in the loss. Dense inputs then leave room for the most important features only, each with a
    dimension of its own; sparser ones let features share. Adam with a cosine schedule, as `superposition` has it.

    Cost: about 10 CPU seconds for 14 probabilities and the defaults.

    Args:
        probabilities: Of each feature in an input, each in (0, 1].
        n_features: Inputs and outputs.
        d_hidden: Hidden units.
        importance: In (0, 1]; with 1 dense models have no reason to prefer single features.
        n_starts: Models for each probability.
        n_steps: Training steps.
        batch_size: Inputs in a step, for each model its own.
        seed: Of initial weights and data.

    Raises:
        SettingError: A probability or the importance is out of range, or sizes are not positive.

    Source: Elhage et al. 2022, "Toy Models of Superposition", "Demonstrating Superposition" (importance 0.9ⁱ there).
    """
    _check(probabilities, importance, min(n_features, d_hidden, n_starts, n_steps, batch_size))
    generator, n_models = torch.Generator().manual_seed(seed), len(probabilities) * n_starts
    chance = torch.tensor(probabilities).repeat_interleave(n_starts).view(-1, 1, 1)
    weight = torch.randn(n_models, d_hidden, n_features, generator=generator) * d_hidden**-0.5
    parameters = (weight.requires_grad_(), torch.zeros(n_models, 1, n_features, requires_grad=True))
    counts = importance ** torch.arange(n_features)
    with torch.enable_grad():
        optimizer = torch.optim.Adam(parameters, lr=5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
        for _ in range(n_steps):
            size = (n_models, batch_size, n_features)
            x = torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < chance)
            optimizer.zero_grad()
            (_losses(*parameters, x, counts) / chance.flatten()).sum().backward()
            optimizer.step()
            schedule.step()
    shaped = [each.detach().unflatten(0, (len(probabilities), n_starts)) for each in parameters]
    rows = [sparse_uniform(_N_MEASURED, n_features, chance, generator) for chance in probabilities]
    losses = [_losses(w, b, x, counts) / p for w, b, x, p in zip(*shaped, rows, probabilities, strict=True)]
    return TiedModels(tuple(probabilities), shaped[0], shaped[1].squeeze(2), torch.stack(losses))


def _losses(
    weight: Float[Tensor, "model d_hidden feature"],
    bias: Float[Tensor, "model 1 feature"],
    x: Float[Tensor, "*model batch feature"],
    counts: Float[Tensor, " feature"],
) -> Float[Tensor, " model"]:
    return ((torch.relu(x @ weight.mT @ weight + bias) - x).square() * counts).mean((1, 2))


def _check(probabilities: Sequence[float], importance: float, smallest: int) -> None:
    if not len(probabilities) or not all(0 < chance <= 1 for chance in probabilities):
        raise SettingError(f"probabilities={list(probabilities)}: give one or more, each above 0 and at most 1.")
    if not 0 < importance <= 1 or smallest < 1:
        raise SettingError(f"importance={importance} must be above 0 and at most 1, and all sizes positive.")
