"""What every method's fit shares: the loop of steps, where directions start, and in which order they are returned."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from param_features.errors import NonFiniteError
from param_features.fit.dictionary import GradientDictionary, most_samples, overlaps_of
from param_features.fit.encoder import Encoder
from param_features.fit.formats.low_rank import (
    Directions,
    LowRank,
    direction_bytes,
    n_numbers,
    number_bytes,
    overlap_bytes,
)
from param_features.fit.request import FitRequest
from param_features.gradients import (
    Dense,
    Factored,
    Gradient,
    Gradients,
    SampleGradients,
    bytes_per_sample,
    leading_of_factored,
    samples_together,
)
from param_features.params import Modes

_LARGE = 2**18
"""From so many parameters on, a matrix is worth a detour to stay factored."""

_DENSE_NUMBERS = 2**25
"""Dense gradients that exist at a time."""

_MOST_HISTORY = 100

SomeDirections = TypeVar("SomeDirections", bound=Directions)


@dataclass(frozen=True)
class Fit:
    """A dictionary as a fit returns it, with a record of its steps.

    Attributes:
        dictionary: The directions, and how codes follow.
        steps_done: Steps taken; fewer than asked for after an interruption.
        errors: Reconstruction error of each step's batch, where a step has one.
    """

    dictionary: Any
    steps_done: int
    errors: tuple[float, ...] = ()

    @property
    def history(self) -> list[float]:
        """Mean error of each hundredth of the steps, or of each step where they are fewer."""
        n_parts = min(len(self.errors), _MOST_HISTORY)
        return [] if n_parts == 0 else [float(part.mean()) for part in torch.tensor(self.errors).tensor_split(n_parts)]


@runtime_checkable
class StepwiseFit(Protocol):
    """A fit that goes step by step."""

    @property
    def n_steps(self) -> int:
        """How many steps were taken."""
        ...

    def step(self) -> Any:
        """Take one step and return its outcome."""

    def status(self, outcome: Any) -> dict[str, str]:
        """What the progress bar shows."""
        ...


def take_steps(trainer: StepwiseFit, n_steps: int, *, progress: bool, is_shared: bool = False) -> None:
    """Step until `n_steps` are done, under a progress bar; Ctrl-C ends the fit early and keeps what is learned so far.

    Processes that share the fit are interrupted at different steps.

    Raises:
        KeyboardInterrupt: After Ctrl-C, where the fit is shared.
    """
    n_done = trainer.n_steps
    with tqdm(total=n_steps, initial=n_done, desc="fit", unit="step", disable=not progress, smoothing=0.05) as bar:
        try:
            for _ in range(n_done, n_steps):
                outcome = trainer.step()
                bar.update()
                if trainer.n_steps % 20 == 0:
                    bar.set_postfix(trainer.status(outcome), refresh=False)
        except KeyboardInterrupt:
            if is_shared:
                raise
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
    format: type[SomeDirections],
    store: SampleGradients,
    index: Int[Tensor, " feature"],
    modes: Mapping[str, Modes],
    rank: int,
) -> SomeDirections:
    """The leading part of some samples' gradients, in a format; the norm is the gradient's.

    Memory: dense gradients of 2²⁵ numbers at a time.
    """
    n_params = sum(torch.Size(axes.out).numel() * torch.Size(axes.into).numel() for axes in modes.values())
    parts = [leading_part(format, store.rows(part), modes, rank) for part in index.split(_n_dense(n_params))]
    return reduce(lambda first, second: first.joined(second), parts)


def leading_bytes(like: Gradients, n_samples: int) -> int:
    """Bytes that `leading_directions` makes: matrices of as many samples as are built at a time, and singular vectors."""
    n_params = n_numbers(like)
    n = min(n_samples, _n_dense(n_params))
    if all(_is_low_rank(gradient) for gradient in like.values()):
        return 4 * n * bytes_per_sample(like)
    return n * bytes_per_sample(like) + 3 * n * n_params * number_bytes(like)


def start_bytes(like: Gradients, request: FitRequest) -> int:
    """Bytes that a fit's first V_in and V_out take while they are made.

    Args:
        like: Gradients of any few samples.
        request: What is asked of the fit.
    """
    return 2 * direction_bytes(like, request.n_features, request.rank) + leading_bytes(like, request.n_features)


def _n_dense(n_params: int) -> int:
    """Samples whose dense gradients exist at a time."""
    return max(1, _DENSE_NUMBERS // n_params)


def leading_part(
    format: type[SomeDirections], gradients: Gradients, modes: Mapping[str, Modes], rank: int
) -> SomeDirections:
    """The leading part of each gradient; of large matrices of low rank from their factors, in the matrix format."""
    if format is LowRank and all(_is_low_rank(gradient) for gradient in gradients.values()):
        factors = {name: _leading_factors(gradient, rank) for name, gradient in gradients.items()}
        return LowRank(factors)  # type: ignore[return-value]
    return format.leading(matrices(gradients), modes, rank)  # type: ignore[return-value]


def leading_left_over(
    format: type[SomeDirections],
    gradients: Gradients,
    v_out: LowRank,
    coords: Float[Tensor, "sample feature"],
    modes: Mapping[str, Modes],
    rank: int,
) -> SomeDirections:
    """The leading part of what coordinates leave of each gradient. Memory: as of `leading_directions`."""
    parts = []
    for part in torch.arange(len(coords), device=coords.device).split(_n_dense(n_numbers(gradients))):
        rows = {name: gradient.map(lambda tensor, part=part: tensor[part]) for name, gradient in gradients.items()}
        parts.append(leading_part(format, _left_over(rows, v_out, coords[part]), modes, rank))
    return reduce(lambda first, second: first.joined(second), parts)


def _left_over(gradients: Gradients, v_out: LowRank, coords: Float[Tensor, "sample feature"]) -> Gradients:
    """∇ − Σ_k c_k v_k: of large matrices as more factors, dense otherwise."""
    if not all(_is_large(gradient) for gradient in gradients.values()):
        rebuilt = v_out.rebuilt(coords)
        return {name: Dense(matrix - rebuilt[name]) for name, matrix in matrices(gradients).items()}
    which = coords.abs().topk(int((coords != 0).sum(1).max()), 1).indices
    weight, factors = coords.gather(1, which)[:, :, None, None], {}
    for name, (left, right) in v_out.factors.items():
        chosen, scale = which.to(left.device), weight.to(left.device)
        taken = (-scale * left[chosen]).mT.flatten(1, 2), right[chosen].mT.flatten(1, 2)
        pairs = zip(gradients[name].tensors, taken, strict=True)
        factors[name] = Factored(*(torch.cat(pair, 1) for pair in pairs))
    return factors


def _is_large(gradient: Gradient) -> bool:
    d_out, d_in = gradient.matrix_shape
    return isinstance(gradient, Factored) and d_out * d_in >= _LARGE


def _is_low_rank(gradient: Gradient) -> bool:
    return _is_large(gradient) and 2 * gradient.tensors[0].shape[1] <= min(gradient.matrix_shape)


def _leading_factors(gradient: Gradient, rank: int) -> tuple[Tensor, Tensor]:
    """As `leading_factors` of the dense matrices, padded with zeros to the rank."""
    assert isinstance(gradient, Factored)
    left, right = leading_of_factored(gradient, rank)
    room = 0, max(0, rank - left.shape[2])
    return nn.functional.pad(left, room), nn.functional.pad(right, room)


@torch.no_grad()
def ranked_fit(store: SampleGradients, v_in: LowRank, v_out: LowRank, l0: float, n_steps: int, encoder: Encoder) -> Fit:
    """The directions, those with the largest coordinates first, and the threshold that keeps `l0` per sample.

    Of many samples it takes as many as have 2²⁶ overlaps, spread evenly: 67,000 with 1,000 features.

    Raises:
        NonFiniteError: A direction holds NaN or infinity: the fit diverged.
    """
    if not all(bool(tensor.isfinite().all()) for tensor in (*v_out.tensors, *v_in.tensors)):
        raise NonFiniteError("The fit diverged: its directions hold NaN or infinity. Take a smaller lr= in fit=.")
    store = store.spread(most_samples(v_out.n_features))
    read_directions = encoder.reads(v_in, v_out)
    overlaps = overlaps_of(read_directions, store)
    coords, threshold = encoder.kept(overlaps, v_out.gram(), l0)
    order = coords.square().sum(0).argsort(descending=True, stable=True)
    ranked_out = v_out.rows(order).map(lambda tensor: tensor.detach().clone())
    ranked_in = ranked_out if v_in is v_out else v_in.rows(order).map(lambda tensor: tensor.detach().clone())
    return Fit(GradientDictionary(ranked_in, ranked_out, threshold, encoder), n_steps)


def ranking_bytes(like: Gradients, request: FitRequest, n_train: int) -> int:
    """Bytes that `ranked_fit` takes: both sets of directions twice, and the overlaps and codes of the samples that it reads.

    Args:
        like: Gradients of any few samples.
        request: What is asked of the fit.
        n_train: Training samples.
    """
    n_read = min(n_train, most_samples(request.n_features))
    n_together = min(n_read, samples_together(bytes_per_sample(like)))
    reading = n_together * bytes_per_sample(like) + overlap_bytes(like, n_together, request.n_features, request.rank)
    coding = round(request.encoder.code_numbers(n_read, request.n_features) * number_bytes(like))
    return 4 * direction_bytes(like, request.n_features, request.rank) + max(reading, coding)


def matrix_modes(gradients: Gradients) -> dict[str, Modes]:
    """The axes of each parameter where nothing is known of it but its matrix."""
    return {name: Modes(*((d,) for d in gradient.matrix_shape)) for name, gradient in gradients.items()}


def matrices(gradients: Gradients) -> dict[str, Tensor]:
    """Every sample's gradient as a dense matrix, by name."""
    return {name: gradient.dense().matrix for name, gradient in gradients.items()}
