"""Chains of stochastic-gradient Langevin dynamics around a model's weights, by devinterp, and whether they agree."""

import gc
import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import inf, nan
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor, nn

from param_features.circuits import Metric, checked_values
from param_features.errors import MissingExtraError, SettingError
from param_features.fit.formats import LowRank
from param_features.gradients import GradientEngine, differentiable
from param_features.params import ParamSubset
from param_features.problem import ModelInputs

_STABLE = 4.0
"""lr γ below which a step pulls back less than twice the distance: from there on every step lands further away."""

_FAR = 5.0
"""Of the radius that localisation alone gives: no chain near a minimum gets there."""

_LEAST_SHARE = 1e-6
"""Directions of the span whose share of the largest eigenvalue of the Gram matrix is smaller are left out."""


@dataclass(frozen=True)
class ChainSettings:
    """How chains are sampled; see `learning_coefficient`.

    Attributes:
        n_beta: nβ.
        lr: Step size of the dynamics.
        localization: γ.
        n_chains: Independent chains.
        n_steps: Steps of each chain.
        n_burn_in: Of these, how many are left out.
        batch_size: Rows of a step.
        seed: Of chains and batches.
    """

    n_beta: float
    lr: float
    localization: float
    n_chains: int
    n_steps: int
    n_burn_in: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse numbers out of range.

        Raises:
            SettingError: Names the setting.
        """
        if not self.n_beta > 0:
            raise SettingError(f"n_beta={self.n_beta} must be positive; n / log n is usual.")
        if not 0 < self.lr < inf or not 0 <= self.localization < inf:
            raise SettingError(
                f"lr={self.lr} must be positive and localization={self.localization} at least 0, both finite."
            )
        if self.lr * self.localization >= _STABLE:
            raise SettingError(
                f"lr={self.lr:g} with localization={self.localization:g} makes every chain diverge: each step pulls back by "
                f"lr · localization / 2 of the distance. Take lr below {_STABLE / self.localization:g}, such as "
                f"{0.1 / self.localization:g}."
            )
        if min(self.n_chains, self.batch_size) < 1 or self.n_steps < 8:
            raise SettingError(
                f"n_chains={self.n_chains} and batch_size={self.batch_size} must be positive, n_steps={self.n_steps} 8 or "
                "more."
            )
        if not 0 <= self.n_burn_in <= self.n_steps - 4:
            raise SettingError(f"n_burn_in={self.n_burn_in} must leave four of n_steps={self.n_steps} or more.")


@dataclass
class Travel:
    """How far chains get from the weights that they start at, as their models run.

    Attributes:
        farthest: The largest distance; NaN from the first weight on that is NaN or infinite.
    """

    farthest: float = 0.0

    def add(self, moves: Iterable[Tensor]) -> None:
        """Take the distance of these coordinates from 0."""
        square = sum(float(move.detach().double().square().sum()) for move in moves)
        self.farthest = max(self.farthest, square**0.5) if square < inf and self.farthest == self.farthest else nan


class LocalLoss(nn.Module):
    """The model's losses on chosen rows, with coordinates of the weights as its only parameters; 0 is where they are.

    Along directions one parameter z holds orthonormal coordinates of the span, W + Σ_k (z G^{-1/2})_k v_k; else each
    decomposed matrix has a parameter of its own.
    """

    def __init__(self, engine: GradientEngine, directions: LowRank | None, inputs: ModelInputs, metric: Metric) -> None:
        """Keep the model in a tuple, so that it is no submodule: its weights are not to be sampled."""
        super().__init__()
        self.measured, self.travel, self.placed = (engine, inputs, metric), Travel(), ExitStack()
        subset = engine.subset
        self.factors, self.to_steps = None, None
        if directions is None:
            self.moves = nn.ParameterList([torch.zeros_like(view.tensor) for view in subset.views])
            self.n_dimensions = subset.n_params
            return
        fixed = directions.map(lambda tensor: tensor.detach())
        square, axes = torch.linalg.eigh(fixed.gram().double())
        is_kept = square > _LEAST_SHARE * square.max()
        self.to_steps = (axes[:, is_kept] / square[is_kept].sqrt()).T  # [axis feature]
        self.factors = fixed.factors
        self.n_dimensions = int(is_kept.sum())
        self.moves = nn.ParameterList([torch.zeros(self.n_dimensions, device=square.device)])

    def __deepcopy__(self, memo: dict) -> "LocalLoss":
        """Coordinates of its own, beside the same model: each chain copies this module."""
        copy = object.__new__(LocalLoss)
        copy.__dict__.update(self.__dict__)
        copy._modules = {"moves": nn.ParameterList([move.detach().clone() for move in self.moves])}
        return copy

    def train(self, mode: bool = True) -> "LocalLoss":
        """Nothing: the model stays in the mode that it is in."""
        return self

    def forward(self, rows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The loss of each row; the model is held still by the caller.

        Its weights stay moved until the next call, for the backward pass, or until the caller closes `placed`.
        """
        engine, inputs, metric = self.measured
        self.travel.add(self.moves)
        chosen = inputs.rows(rows)
        self.placed.close()
        self.placed.enter_context(differentiable(engine.subset, self._weights(engine.subset)))
        return metric.on(engine.adapter, chosen)(engine.adapter.run(*chosen.args, **chosen.kwargs))

    @torch.no_grad()
    def row_losses(self, batch_size: int) -> Float[Tensor, " row"]:
        """The loss of every row."""
        _, inputs, metric = self.measured
        parts = [checked_values(self(rows), len(rows), metric.name) for rows in torch.arange(len(inputs)).split(batch_size)]
        return torch.cat(parts).double()

    def has_diverged(self, settings: ChainSettings) -> bool:
        """Whether a chain's weights became NaN or infinite, or got where none near a minimum does.

        The losses do not tell: a model may turn NaN attention into zeros. Localisation alone keeps a chain within a radius
        of sqrt(d / γ / (1 − lr γ / 4)), and a minimum draws it nearer; five times that is refused.
        """
        if settings.localization == 0:
            return not self.travel.farthest < inf
        square = self.n_dimensions / settings.localization / (1 - settings.lr * settings.localization / _STABLE)
        return not self.travel.farthest <= _FAR * square**0.5

    def _weights(self, subset: ParamSubset) -> dict[str, Tensor]:
        if self.factors is None or self.to_steps is None:
            return {view.name: view.tensor.detach() + move for view, move in zip(subset.views, self.moves, strict=True)}
        steps = self.moves[0].double() @ self.to_steps
        return {view.name: view.tensor.detach() + self._moved(view, steps) for view in subset.views}

    def _moved(self, view: Any, steps: Float[Tensor, " feature"]) -> Tensor:
        assert self.factors is not None
        left, right = self.factors[view.name]
        return view.from_matrix(einsum(steps.to(left), left, right, "k, k o rank, k i rank -> o i")).to(view.tensor)


def sampled_losses(local_loss: LocalLoss, settings: ChainSettings) -> Float[Tensor, "chain step"]:
    """Every step's mean loss, by devinterp's sampler on row numbers."""
    try:
        from datasets import Dataset
        from devinterp.slt.sampling import sample
    except ImportError as error:
        raise MissingExtraError(
            f"The learning coefficient needs devinterp, and the import failed: {error}. From 2.0.1 up is accepted. "
            'Run: pip install "param_features[devinterp]".'
        ) from error
    rows = torch.arange(len(local_loss.measured[1]))
    data = Dataset.from_dict({"input_ids": torch.stack([rows, rows], 1).tolist()}).with_format("torch")

    def loss_fn(model: nn.Module, ids: Tensor) -> Tensor:
        return model(ids[:, 0]).float().unsqueeze(1)

    with (
        _users_random_state(),
        _left_uncollected(),
        TemporaryDirectory() as folder,
        warnings.catch_warnings(),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        samples = sample(
            local_loss,
            data,
            {},
            batch_size=settings.batch_size,
            num_init_loss_batches=1,
            loss_fn=loss_fn,
            device=str(local_loss.moves[0].device),
            output_path=f"{folder}/samples.zarr",
            init_seed=settings.seed,
            lr=settings.lr,
            n_beta=settings.n_beta,
            localization=settings.localization,
            num_chains=settings.n_chains,
            num_draws=settings.n_steps,
        )
        losses = samples.dataset.sampling_loss_micro.mean(dim=["batch_sampling", "token_pos"]).values
    return torch.from_numpy(np.asarray(losses, dtype=np.float64).copy())


@contextmanager
def _users_random_state() -> Iterator[None]:
    """Run a block that seeds every global generator, and put the user's states back."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)


@contextmanager
def _left_uncollected() -> Iterator[None]:
    """Keep what exists out of garbage collection, which devinterp calls twice a chain: most of a short chain's time."""
    if gc.get_freeze_count():  # the user's own: unfreezing would end it
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def r_hat(losses: Float[Tensor, "chain step"]) -> float:
    """Rank-normalised split R̂; NaN for one chain."""
    if len(losses) < 2 or not bool(torch.isfinite(losses).all()):
        return float("nan")
    from arviz_stats.base.array import array_stats

    value: Any = array_stats.rhat(losses.numpy(), chain_axis=0, draw_axis=1)
    return float(value)
