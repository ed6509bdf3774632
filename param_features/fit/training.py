"""The training loop: from harvested gradients to V_in, V_out and the threshold."""

import math
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from param_features.fit.checkpointing import Checkpoints, keeping
from param_features.fit.formats.low_rank import (
    Directions,
    LowRank,
    direction_bytes,
    gram_bytes,
    number_bytes,
    overlap_bytes,
)
from param_features.fit.l3d import StepLoss, l3d_loss, remove_parallel, renormalize
from param_features.fit.loop import (
    Fit,
    leading_bytes,
    leading_directions,
    leading_left_over,
    lr_factor,
    matrix_modes,
    ranked_fit,
    strong_samples,
    take_steps,
)
from param_features.fit.off_target import OffTarget
from param_features.fit.reconstruction import square_errors
from param_features.fit.request import FitRequest
from param_features.fit.restarts import replacements, usefulness
from param_features.fit.settings import FitSettings
from param_features.gradients import Gradient, Gradients, SampleGradients, bytes_per_sample
from param_features.machine import ALONE, Processes, Share

_RESTART_BATCHES = 4
"""What to restart is judged on so many batches."""

_RESTART_BYTES = 2**28
"""Bytes of the gradients that are read together while it is judged what to restart."""

_COPIES = 5
"""A fit's directions, their gradients, Adam's two moments, and what a step makes of their size."""


def fit_l3d(
    store: SampleGradients,
    request: FitRequest[FitSettings],
    *,
    generator: torch.Generator,
    progress: bool,
    off_target: OffTarget | None = None,
    checkpoints: Checkpoints | None = None,
    processes: Processes = ALONE,
) -> Fit:
    """Learn the directions. Ctrl-C ends the fit early and keeps what is learned so far.

    Cost: a step costs inner products of a batch with n_features directions, and with V_in's as many, and the backward pass
    of V_in's; V_out's costs what the few features kept do. Gradients in factors are multiplied as factors, at positions
    where they are not zero, or as matrices, whichever costs less.

    Args:
        store: Training gradients.
        request: Which directions are wanted, and how they are learned.
        generator: Draws batches and starting points.
        progress: Whether to show a progress bar with loss, error, l0 and dead features.
        off_target: What features cost by acting on other samples.
        checkpoints: Where the fit is kept, and gone on with.
        processes: Who share every batch; Ctrl-C then ends all of them.
    """
    trainer = Trainer(store, request, generator, off_target, processes)
    with keeping(trainer, checkpoints) as steps:
        take_steps(steps, request.settings.steps, progress=progress, is_shared=processes.n > 1)
    return trainer.result()


class Trainer:
    """The state of a fit: directions, optimiser, and when each feature was last kept."""

    def __init__(
        self,
        store: SampleGradients,
        request: FitRequest[FitSettings],
        generator: torch.Generator,
        off_target: OffTarget | None = None,
        processes: Processes = ALONE,
    ) -> None:
        """Start from the leading part of real gradients."""
        self.off_target, self.processes = off_target, processes
        self.store, self.generator, self.settings = store, generator, request.settings
        self.l0, self.rank, self.format = request.l0, request.rank, request.format
        self.modes = request.modes or matrix_modes(store.rows(slice(0, 1)))
        self.square_norm = store.square_norm()
        self.scale = float(self.square_norm.double().mean()) ** -0.5
        self.v_out = self._start(request.n_features)
        self.v_in = self.v_out if self.settings.is_tied else self.v_out.map(lambda tensor: tensor.clone())
        tensors = self.v_out.tensors + ([] if self.settings.is_tied else self.v_in.tensors)
        for tensor in tensors:
            processes.spread_(tensor)
            tensor.requires_grad_()
        self.encoder = request.encoder
        self.optimizer = torch.optim.Adam(tensors, lr=self.settings.lr, betas=(0.9, 0.99))
        self.last_kept = torch.zeros(request.n_features, dtype=torch.long, device=tensors[0].device)
        self.n_steps = 0
        self.errors = torch.zeros(self.settings.steps, dtype=torch.float64)
        self.order = torch.empty(0, dtype=torch.long)

    @torch.enable_grad()
    def step(self) -> StepLoss:
        """One Adam step on one batch, of which each process takes its part."""
        index = self._next_batch()
        share = self.processes.share(len(index))
        gradients, norms = self._scaled(share.of(index))
        v_out = self.v_out.folded()
        v_in = v_out if self.settings.is_tied else self.v_in.folded()
        l0, dead = self.current_l0(), self.dead
        outcome = l3d_loss(gradients, norms, v_in, v_out, l0=l0, dead=dead, settings=self.settings, share=share)
        loss = outcome.loss
        if self.off_target is not None:
            loss = loss + self.off_target.penalty(v_in, v_out, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        is_kept, outcome = self._together(share, outcome, norms)
        remove_parallel(self.v_out)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.lr * lr_factor(self.n_steps, self.settings.steps)
        self.optimizer.step()
        renormalize(self.v_out)
        self.v_in.balance_()
        self.n_steps += 1
        self.errors[self.n_steps - 1 : self.n_steps] = outcome.error
        self.last_kept[is_kept] = self.n_steps
        if self._is_time_to_restart():
            self._restart_idle()
        return outcome

    def _together(self, share: Share, outcome: StepLoss, norms: Tensor) -> tuple[Bool[Tensor, " feature"], StepLoss]:
        """The batch's gradient in all processes; which features any of its samples kept, and its error."""
        is_kept = outcome.kept.any(0)
        if share.is_whole:
            return is_kept, outcome
        grads = [parameter.grad for group in self.optimizer.param_groups for parameter in group["params"]]
        for grad in grads:
            grad.mul_(share.weight)
        counts, sums = is_kept.to(norms), torch.stack([outcome.errors.sum(), norms.sum()])
        share.sum_([*grads, counts, sums])
        return counts > 0, replace(outcome, error=float(sums[0] / sums[1]))

    @property
    def n_in_pass(self) -> int:
        """How many samples a pass over the data goes through: all of the training samples."""
        return self.store.n_samples

    @property
    def counters(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside directions, optimiser and data."""
        return {"last_kept": self.last_kept, "errors": self.errors}

    @property
    def dead(self) -> Bool[Tensor, " feature"]:
        """Features that no sample has kept for `dead_after` steps."""
        return self.n_steps - self.last_kept > self.settings.dead_after

    def current_l0(self) -> float:
        """Falls geometrically from all features to `l0` over the warm start."""
        n_warm = self.settings.warm_start * self.settings.steps
        if self.n_steps >= n_warm or self.settings.selection == "pursuit":
            return self.l0
        return len(self.last_kept) * (self.l0 / len(self.last_kept)) ** (self.n_steps / n_warm)

    def status(self, outcome: StepLoss) -> dict[str, str]:
        """What the progress bar shows."""
        l0 = float(outcome.kept.sum()) / len(outcome.kept)
        dead = int(self.dead.sum())
        return {
            "loss": f"{float(outcome.loss.detach()):.3f}",
            "error": f"{outcome.error:.3f}",
            "l0": f"{l0:.1f}",
            "dead": f"{dead}",
        }

    @torch.no_grad()
    def result(self) -> Fit:
        """The directions, those with the largest coordinates first, and the threshold that keeps `l0` per sample."""
        renormalize(self.v_out)  # an interruption may have come between a step and its renormalisation
        self._agree()
        folded = self.v_out.folded()
        folded_in = folded if self.settings.is_tied else self.v_in.folded()
        fit = ranked_fit(self.store, folded_in, folded, self.l0, self.n_steps, self.encoder)
        return replace(fit, errors=tuple(self.errors[: self.n_steps].tolist()))

    def _start(self, n_features: int) -> Directions:
        """The leading part of randomly chosen samples' gradients, preferring strong ones."""
        index = strong_samples(self.store, n_features, self.generator)
        directions = leading_directions(self.format, self.store, index, self.modes, self.rank)
        renormalize(directions)
        return directions

    def _next_batch(self) -> Int[Tensor, " sample"]:
        size = min(self.settings.batch_size, self.store.n_samples)
        if len(self.order) < size:
            self.order = torch.randperm(self.n_in_pass, generator=self.generator)
        index, self.order = self.order[:size], self.order[size:]
        return index

    def _scaled(self, index: Int[Tensor, " sample"]) -> tuple[Gradients, Tensor]:
        gradients = {name: _scale(gradient, self.scale) for name, gradient in self.store.rows(index).items()}
        return gradients, self.square_norm[index] * self.scale**2

    def _is_time_to_restart(self) -> bool:
        if not self.settings.resample:
            return False
        every = max(1, math.floor(0.6 * self.settings.steps / self.settings.resample))
        return self.n_steps % every == 0 and self.n_steps <= 0.6 * self.settings.steps

    @torch.no_grad()
    def _restart_idle(self) -> None:
        """Put directions that lower the error more in the place of those that do little; their Adam moments start anew."""
        size = min(_RESTART_BATCHES * self.settings.batch_size, self.store.n_samples)
        index = torch.randperm(self.store.n_samples, generator=self.generator)[:size].to(self.square_norm.device)
        norms = self.square_norm[index] * self.scale**2
        v_out = self.v_out.folded()
        gram, overlaps = v_out.gram(), self._overlaps(v_out, index)
        read_directions = self.encoder.reads(self.v_in.folded(), v_out)
        code_overlaps = overlaps if read_directions is v_out else self._overlaps(read_directions, index)
        coords, threshold = self.encoder.kept(code_overlaps, gram, self.l0)
        left = overlaps - coords @ gram
        useful = usefulness(coords, left, gram, threshold)
        errors = square_errors(coords, overlaps, gram, norms).clamp(min=0).cpu()
        n_candidates = min(16 + self.v_out.n_features // 4, int((errors > 0).sum()))
        if not n_candidates:
            return
        drawn = torch.multinomial(errors, n_candidates, generator=self.generator).to(index.device)
        rows, _ = self._scaled(index[drawn])
        candidates = leading_left_over(self.format, rows, v_out, coords[drawn], self.modes, self.rank)
        renormalize(candidates)
        folded = candidates.folded()
        gains = (
            (self._overlaps(folded, index) - coords @ v_out.gram(folded)).square().sub_(threshold**2).clamp_(min=0).sum(0)
        )
        if self.off_target is not None:
            useful = (useful - size * self.off_target.costs(v_out)).clamp(min=0)
            gains = gains - size * self.off_target.costs(folded)
        self._replace(*replacements(useful, gains, folded.gram()), candidates)
        self._agree()

    def _agree(self) -> None:
        """Take the main process's directions; others' would differ by rounding on another kind of processor."""
        for tensor in self.v_out.tensors + self.v_in.tensors:
            self.processes.spread_(tensor)

    def _overlaps(self, directions: LowRank, index: Int[Tensor, " sample"]) -> Tensor:
        """⟨∇, v_k⟩ of some samples, as many at a time as take 256 MiB."""
        parts = index.split(max(1, _RESTART_BYTES // self.store.sample_bytes))
        return torch.cat([directions.overlaps(self._scaled(part)[0]) for part in parts])

    def _replace(self, features: Tensor, candidates: Tensor, fresh: Directions) -> None:
        for directions in {id(self.v_in): self.v_in, id(self.v_out): self.v_out}.values():
            for tensor, new in zip(directions.tensors, fresh.tensors, strict=True):
                tensor[features] = new[candidates]
                for moment in ("exp_avg", "exp_avg_sq"):
                    self.optimizer.state[tensor][moment][features] = 0
        self.last_kept[features] = self.n_steps


def fit_bytes(like: Gradients, request: FitRequest[FitSettings], n_train: int) -> int:
    """Bytes that `fit_l3d` takes at its peak, beside the gradients.

    Args:
        like: Gradients of any few samples.
        request: What is asked of the fit.
        n_train: Training samples.
    """
    directions = 2 * _COPIES * direction_bytes(like, request.n_features, request.rank)
    return directions + max(step_bytes(like, request, n_train), restart_bytes(like, request, n_train))


def step_bytes(like: Gradients, request: FitRequest[FitSettings], n_train: int) -> int:
    """Bytes of `Trainer.step`: a batch and its copy, or a batch and its overlaps and codes; and the Gram matrix."""
    n, n_features = min(request.settings.batch_size, n_train), request.n_features
    batch = n * bytes_per_sample(like)
    scaled = n * sum(gradient.tensors[0].shape[1:].numel() for gradient in like.values()) * number_bytes(like)
    inner = overlap_bytes(like, n, 2 * n_features, request.rank, is_graded=True)
    code = round(request.encoder.code_numbers(n, n_features) * number_bytes(like))
    gram = gram_bytes(like, n_features, request.rank)
    return max(batch + scaled, batch + inner + code // 4, batch + inner // 3 + code) + gram


def restart_bytes(like: Gradients, request: FitRequest[FitSettings], n_train: int) -> int:
    """Bytes of judging what to restart, and of the matrices of what might take its place; 0 where nothing is restarted."""
    if not request.settings.resample:
        return 0
    n = min(_RESTART_BATCHES * request.settings.batch_size, n_train)
    read = 2 * min(n * bytes_per_sample(like), _RESTART_BYTES)
    code = round(request.encoder.code_numbers(n, request.n_features) * number_bytes(like))
    return max(read + code // 2, code, leading_bytes(like, request.n_features))


def _scale(gradient: Gradient, factor: float) -> Gradient:
    """The gradient times a number, in place: its first stored tensor carries it."""
    gradient.tensors[0].mul_(factor)
    return gradient
