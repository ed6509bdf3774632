"""What every method's fit shares: the loop of steps, where directions start, and in which order they are returned."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm import tqdm

from param_features.decompose.encoder import LINEAR, Encoder
from param_features.directions import Directions, LowRank
from param_features.gradients import Gradients, SampleGradients
from param_features.params import Modes

Format = TypeVar("Format", bound=Directions)


@dataclass(frozen=True)
class Fit:
    """What a fit returns.

    Attributes:
        v_in: Maps gradients to activations, in divergence units per unit step.
        v_out: Unit-norm directions; `v_in` itself in a tied fit.
        threshold: |coordinate| from which a feature is kept.
        steps_done: Steps taken; fewer than asked for after an interruption.
        encoder: How codes follow from activations V_in ∇.
    """

    v_in: LowRank
    v_out: LowRank
    threshold: float
    steps_done: int
    encoder: Encoder = LINEAR


@runtime_checkable
class Steps(Protocol):
    """A fit that goes step by step."""

    n_steps: int

    def step(self) -> Any:
        """Take one step and return what it saw."""

    def status(self, seen: Any) -> dict[str, str]:
        """What the progress bar shows."""
        ...


def take_steps(trainer: Steps, n_steps: int, *, progress: bool) -> None:
    """Step `n_steps` times under a progress bar; Ctrl-C ends the fit early and keeps what is learned so far."""
    with tqdm(total=n_steps, desc="fit", unit="step", disable=not progress, smoothing=0.05) as bar:
        try:
            for _ in range(n_steps):
                seen = trainer.step()
                bar.update()
                if trainer.n_steps % 20 == 0:
                    bar.set_postfix(trainer.status(seen), refresh=False)
        except KeyboardInterrupt:
            notice = f"Interrupted after {trainer.n_steps} of {n_steps} steps: keeping the features fitted so far."
            bar.write(notice, file=sys.stderr)


def lr_factor(n_done: int, n_steps: int) -> float:
    """Rises over the first 2 % of the steps, falls linearly to zero over the last half."""
    done = n_done / n_steps
    return min(1.0, (done + 1 / n_steps) / 0.02, max(0.0, 2 * (1 - done)))


def strong_samples(store: SampleGradients, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Samples drawn at random, preferring those with large gradients; some twice where too few have any."""
    square_norm = store.square_norm()
    weights = square_norm.sqrt().cpu()
    index = torch.multinomial(weights, n, replacement=int((weights > 0).sum()) < n, generator=generator)
    return index.to(square_norm.device)


def leading_directions(
    format: type[Format],
    store: SampleGradients,
    index: Int[Tensor, " feature"],
    modes: Mapping[str, Modes],
    rank: int,
) -> Format:
    """The leading part of some samples' gradients, in a format; the norm is the gradient's."""
    return format.leading(matrices(store.rows(index)), modes, rank)


@torch.no_grad()
def ranked_fit(store: SampleGradients, v_in: LowRank, v_out: LowRank, l0: float, n_steps: int, encoder: Encoder) -> Fit:
    """The directions, those with the largest coordinates first, and the threshold that keeps `l0` per sample."""
    read = encoder.reads(v_in, v_out)
    overlaps = torch.cat([read.inner(chunk) for chunk in store.chunks()])
    kept, threshold = encoder.kept(overlaps, v_out.gram(), l0)
    order = kept.square().sum(0).argsort(descending=True, stable=True)
    ranked_out = v_out.rows(order).map(lambda tensor: tensor.detach().clone())
    ranked_in = ranked_out if v_in is v_out else v_in.rows(order).map(lambda tensor: tensor.detach().clone())
    return Fit(ranked_in, ranked_out, threshold, n_steps, encoder)


def matrix_modes(gradients: Gradients) -> dict[str, Modes]:
    """The axes of each parameter where nothing is known of it but its matrix."""
    return {name: Modes(*((d,) for d in gradient.matrix_shape)) for name, gradient in gradients.items()}


def matrices(gradients: Gradients) -> dict[str, Tensor]:
    """Every sample's gradient as a dense matrix, by name."""
    return {name: gradient.dense().matrix for name, gradient in gradients.items()}
