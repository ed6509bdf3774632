"""Curvature of every sample's divergence along directions, without a second derivative."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats.low_rank import LowRank
from param_features.gradients import GradientEngine, OutputGraph, at_least_float32, n_together, output_changes
from param_features.problem import CurvedDivergence, ModelInputs


def curvatures(
    engine: GradientEngine, divergence: CurvedDivergence, directions: LowRank, inputs: ModelInputs
) -> Float[Tensor, "sample feature"]:
    """∇²_u D of every sample along every direction u, where D compares the output with what it is at W₀; differentiable.

    There the Hessian of D is the Gauss–Newton matrix JᵀFJ, so that h_u = (Ju)ᵀ F (Ju): Var_p(Ju) for KL, 2‖Ju‖² for squared
    error. Its derivative ∂h_u/∂u = 2 JᵀF Ju is one backward pass.
    Cost: a pass of the model, and a forward-mode pass per direction; the backward pass of this function costs one backward
    pass of the model per direction, and the forward-mode passes again where their results did not fit in memory.

    Args:
        engine: Runs the model.
        divergence: D.
        directions: In the subset's order; not scaled: twice the step has four times the curvature.
        inputs: One batch.

    Returns:
        In divergence units (nats for KL) per squared unit step, never negative; samples are every real position of every
        row for token models, and rows otherwise.
    """
    matrices = directions.materialize()
    batch = _Batch(engine, divergence, inputs, OutputGraph.of(engine, inputs), tuple(matrices))
    by_sample = _Curvature.apply(batch, *matrices.values()).mT
    is_sample = inputs.sample_mask if engine.per_position else None
    return by_sample if is_sample is None else by_sample[is_sample.flatten()]


@dataclass(frozen=True)
class _Batch:
    """The model and its output on one batch."""

    engine: GradientEngine
    divergence: CurvedDivergence
    inputs: ModelInputs
    graph: OutputGraph
    names: tuple[str, ...]

    def changes(self, matrices: tuple[Tensor, ...]) -> Float[Tensor, "feature sample d_output"]:
        """J u: how the output changes along each direction."""
        outputs = output_changes(self.engine, dict(zip(self.names, matrices, strict=True)), self.inputs)
        return at_least_float32(self._by_sample(outputs, 1))

    def curved(self, changes: Float[Tensor, "feature sample d_output"]) -> Float[Tensor, "feature sample d_output"]:
        """F J u: the divergence's curvature times the output's change."""
        return self.divergence.curved(at_least_float32(self._by_sample(self.graph.output.detach(), 0)), changes)

    def pulled(self, cotangents: Float[Tensor, "feature sample d_output"]) -> tuple[Tensor, ...]:
        """Jᵀ r: cotangents taken back to each parameter."""
        gradients = self.graph.pulled(cotangents.reshape(len(cotangents), *self.graph.output.shape))
        return tuple(gradients[name] for name in self.names)

    def _by_sample(self, output: Tensor, axis: int) -> Tensor:
        return output.flatten(axis, axis + 1) if self.engine.per_position else output.flatten(axis + 1)


class _Curvature(torch.autograd.Function):
    """h [feature sample] of a batch by matrices of directions, a chunk of directions at a time."""

    @staticmethod
    def forward(ctx: Any, batch: _Batch, *matrices: Tensor) -> Tensor:
        """Keeps F J u for the backward pass where all of it is one chunk."""
        ctx.batch, ctx.chunks, ctx.curved = batch, _chunks(batch, matrices), None
        parts = []
        for chunk in ctx.chunks:
            changes = batch.changes(chunk)
            curved = batch.curved(changes)
            parts.append((changes * curved).sum(-1))
            ctx.curved = curved if len(ctx.chunks) == 1 else None
        return torch.cat(parts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        """Σ_x weight_k(x) ∂h_k(x)/∂u_k for every direction."""
        weights, parts = grad_outputs[0], []
        for chunk, weight in zip(ctx.chunks, weights.split([len(chunk[0]) for chunk in ctx.chunks]), strict=True):
            curved = ctx.batch.curved(ctx.batch.changes(chunk)) if ctx.curved is None else ctx.curved
            parts.append(ctx.batch.pulled(2 * weight.unsqueeze(-1) * curved))
        return None, *(torch.cat(part) for part in zip(*parts, strict=True))


def _chunks(batch: _Batch, matrices: tuple[Tensor, ...]) -> list[tuple[Tensor, ...]]:
    size = n_together(batch.engine, batch.inputs)
    return list(zip(*(matrix.split(size) for matrix in matrices), strict=True))
