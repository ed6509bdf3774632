"""Sparse eigendecomposition: directions that are steep for some samples and do not interfere.

Along u the divergence of a sample from its own output has curvature h_u (`curvatures`). Each direction climbs Σ_x h_u(x)²,
which for unit-norm u is largest where all of a direction's curvature falls on few samples; each pair descends its
interference ‖(h_u u)·(h_w w)‖ over samples, which is none for directions at right angles or that no sample shares.

Source: "Feature and Circuit Identification through Sparse Eigendecomposition", the first draft of L3D. Differs: one step on
the difference of both terms, where the draft climbs and descends in turn (in turn, one seed in ten of XOR lost a feature);
u·w is squared, which is smooth at right angles; a weight on pairs at right angles, in the first half of the fit, spreads
directions over samples; each direction's curvature is divided by the square root of its own root mean square over the
batch, since steep directions otherwise push the others to where nothing is steep; directions are low rank.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.checkpointing import Checkpoints, keeping
from param_features.fit.curvature import curvatures
from param_features.fit.formats.low_rank import LowRank
from param_features.fit.l3d import remove_parallel, renormalize
from param_features.fit.loop import Fit, leading_directions, lr_factor, matrix_modes, ranked_fit, strong_samples, take_steps
from param_features.fit.request import FitRequest
from param_features.fit.settings import HessianSettings
from param_features.gradients import GradientEngine, SampleGradients
from param_features.machine import ALONE, Processes
from param_features.problem import CurvedDivergence, ModelInputs

_TINY = 1e-6
_NOISE = 1e-3
_CANDIDATES = 8


def fit_hessian(
    engine: GradientEngine,
    divergence: CurvedDivergence,
    inputs: ModelInputs,
    store: SampleGradients,
    request: FitRequest[HessianSettings],
    *,
    generator: torch.Generator,
    progress: bool,
    checkpoints: Checkpoints | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """Learn the directions. Ctrl-C ends the fit early and keeps what is learned so far.

    Cost: a step costs a pass of the model over `batch_size` samples, and a forward-mode and a backward pass per feature.

    Args:
        engine: Runs the model.
        divergence: Whose curvature is climbed.
        inputs: The training data.
        store: Their gradients: directions start from them, and their activations give order and threshold.
        request: Which directions are wanted, and how they are learned; steps do not heed its l0.
        generator: Draws batches and starting points.
        progress: Whether to show a progress bar with mean square curvature and interference.
        checkpoints: Where the fit is kept, and gone on with.
        processes: Who share the rows of every batch; Ctrl-C then ends all of them.

    Returns:
        V_in and V_out are one, and codes come by pursuit, as in the default L3D fit.
    """
    trainer = HessianTrainer(engine, divergence, inputs, store, request, generator, processes)
    with keeping(trainer, checkpoints) as steps:
        take_steps(steps, request.settings.steps, progress=progress, is_shared=processes.n > 1)
    renormalize(trainer.directions)  # an interruption may have come between a step and its renormalisation
    trainer.agree()
    return ranked_fit(store, trainer.directions, trainer.directions, request.l0, trainer.n_steps, request.encoder)


def climb_and_interference(
    h: Float[Tensor, "sample feature"], gram: Float[Tensor, "feature feature"], spread: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Both terms of the objective, in squared units of `h`.

    Args:
        h: Curvature of each sample along each unit-norm direction.
        gram: u_j·u_k.
        spread: Weight of pairs at right angles, in [0, 1].

    Returns:
        Σ_k mean_x h_k², and Σ_{j<k} sqrt(mean_x h_j² h_k²) · (spread + (1 − spread) (u_j·u_k)²).
    """
    square = h.square()
    shared = (square.mT @ square / len(h) + _TINY**2).sqrt()
    pairs = (shared * (spread + (1 - spread) * gram.square())).triu(1).sum()
    return square.mean(0).sum(), pairs


class HessianTrainer:
    """The state of a fit: directions, optimiser, and the order in which the data are drawn."""

    def __init__(
        self,
        engine: GradientEngine,
        divergence: CurvedDivergence,
        inputs: ModelInputs,
        store: SampleGradients,
        request: FitRequest[HessianSettings],
        generator: torch.Generator,
        processes: Processes = ALONE,
    ) -> None:
        """Start from the leading part of gradients, which are steep for their own samples, or at random."""
        self.engine, self.divergence, self.inputs = engine, divergence, inputs
        self.settings, self.generator, self.processes = request.settings, generator, processes
        self.directions = _start(store, request, generator)
        self.agree()
        for tensor in self.directions.tensors:
            tensor.requires_grad_()
        self.optimizer = torch.optim.Adam(self.directions.tensors, lr=self.settings.lr, betas=(0.9, 0.99))
        self.n_steps = 0
        self.order = torch.empty(0, dtype=torch.long)

    @torch.enable_grad()
    def step(self) -> tuple[float, float]:
        """One Adam step on one batch; returns the median direction's curvature (rms over samples), and the interference."""
        rows = self._next_rows()
        share = self.processes.share(len(rows))
        h = share.joined(curvatures(self.engine, self.divergence, self.directions, self.inputs.rows(share.of(rows))))
        strength = h.detach().square().mean(0).sqrt()
        h = h / strength.clamp(min=torch.finfo(h.dtype).tiny ** 0.5).sqrt()
        gram = self.directions.gram()
        gram = gram if share.is_whole or share.processes.is_main else gram.detach()  # processes' gradients add up
        climb, interference = climb_and_interference(h, gram, self.current_spread())
        self.optimizer.zero_grad(set_to_none=True)
        (self.settings.interference * interference - climb).backward()
        share.sum_([tensor.grad for tensor in self.directions.tensors if tensor.grad is not None])
        remove_parallel(self.directions)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * lr_factor(self.n_steps, self.settings.steps)
        self.optimizer.step()
        renormalize(self.directions)
        self.n_steps += 1
        return float(strength.median()), float(interference.detach())

    def agree(self) -> None:
        """Take the main process's directions; others' would differ by rounding on another kind of processor."""
        for tensor in self.directions.tensors:
            self.processes.spread_(tensor)

    def status(self, outcome: tuple[float, float]) -> dict[str, str]:
        """What the progress bar shows."""
        return {"curvature": f"{outcome[0]:.3g}", "interference": f"{outcome[1]:.3g}"}

    @property
    def n_in_pass(self) -> int:
        """How many rows of inputs a pass over the data goes through."""
        return len(self.inputs)

    @property
    def counters(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside directions, optimiser and data: nothing."""
        return {}

    def current_spread(self) -> float:
        """The weight of a pair at right angles at this step."""
        left = max(0.0, 1 - 2 * self.n_steps / self.settings.steps)
        return left * self.settings.spread / max(1, self.directions.n_features - 1)

    def _next_rows(self) -> Int[Tensor, " row"]:
        per_row = self.inputs.n_pos if self.engine.per_position else 1
        size = max(1, min(self.settings.batch_size // per_row, len(self.inputs)))
        if len(self.order) < size:
            self.order = torch.randperm(self.n_in_pass, generator=self.generator)
        rows, self.order = self.order[:size], self.order[size:]
        return rows


def _start(store: SampleGradients, request: FitRequest[HessianSettings], generator: torch.Generator) -> LowRank:
    """Gradients of strong samples that are as unlike each other as can be found, with noise on top; or noise alone.

    Two directions that start on one feature would share it, and two that start equal would stay so for ever.
    """
    modes = matrix_modes(store.rows(slice(0, 1)))
    index = strong_samples(store, _CANDIDATES * request.n_features, generator)
    candidates = leading_directions(LowRank, store, index, modes, request.rank)
    renormalize(candidates)
    chosen = candidates.rows(_unlike(candidates.gram().square(), request.n_features))
    signal = 0.0 if request.settings.start == "random" else 1 / _NOISE
    start = chosen.map(
        lambda tensor: signal * tensor + torch.randn(tensor.shape, dtype=torch.float32, generator=generator).to(tensor)
    )
    renormalize(start)
    return start


def _unlike(likeness: Float[Tensor, "candidate candidate"], n: int) -> list[int]:
    """Candidates, the first one first, each the least like its most alike predecessor."""
    chosen = [0]
    nearest = likeness[0].clone()
    while len(chosen) < n:
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, likeness[chosen[-1]])
    return chosen
