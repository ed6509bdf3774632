"""The output's Jacobian J in the parameters: J v by forward mode, Jᵀ r by a graph that serves a whole batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients.engine import GradientEngine, at_least_float32
from param_features.gradients.mapping import mapped_or_looped
from param_features.params import copied_buffers, held_still, plain_kernels, untied
from param_features.problem import ModelInputs

Matrices = Mapping[str, Float[Tensor, "feature d_out d_in"]]

_JVP_NUMBERS = 2**25


def output_changes(
    engine: GradientEngine,
    matrices: Matrices,
    inputs: ModelInputs,
    reduce: Callable[[Tensor], Tensor] = lambda change: change,
) -> Float[Tensor, "feature ..."]:
    """J v_k, the change of the whole output per unit step along each direction, reduced by `reduce` while it exists.

    Cost: one forward-mode pass per direction; the ordinary pass is shared by directions that fit in memory together.
    Attention and LSTMs run by their plain kernels meanwhile, since the fused ones have no forward-mode rule.

    Args:
        engine: Runs the model.
        matrices: Directions as dense matrices by parameter name.
        inputs: One batch.
        reduce: Takes the change of one direction, of the output's shape.
    """
    subset, adapter = engine.subset, engine.adapter
    tangents = {name: subset[name].from_matrix(matrix.detach()).to(subset[name].tensor) for name, matrix in matrices.items()}
    primals = {name: tensor.detach() for name, tensor in subset.tensors.items()}

    def run(tensors: dict[str, Tensor]) -> Tensor:
        with subset.replaced(tensors), copied_buffers(adapter.module):
            return adapter.run(*inputs.args, **inputs.kwargs)

    def push(tangent: dict[str, Tensor]) -> Tensor:
        return reduce(torch.func.jvp(run, (primals,), (tangent,))[1])

    n_features = len(next(iter(tangents.values())))
    with held_still(adapter.module), torch.no_grad(), plain_kernels(), untied(adapter.module):
        return _map_features(push, tangents, n_features, n_together(engine, inputs))


def n_together(engine: GradientEngine, inputs: ModelInputs) -> int:
    """How many directions' output changes fit in memory together: 128 MiB of them, at least one."""
    n_positions = inputs.tokens.numel() if inputs.tokens is not None else inputs.tensors[0].numel()
    return max(1, _JVP_NUMBERS // max(1, n_positions * (engine.adapter.d_vocab or 1)))


def _map_features(push, tangents: dict[str, Tensor], n_features: int, n_at_once: int) -> Tensor:
    """What `push` gives for each feature: by vmap, in chunks that fit; one at a time where vmap cannot map the model."""

    def mapped() -> Tensor:
        return torch.func.vmap(push, randomness="same", chunk_size=min(n_features, n_at_once))(tangents)

    def looped() -> Tensor:
        rows = [{name: tensor[k] for name, tensor in tangents.items()} for k in range(n_features)]
        return torch.stack([push(row) for row in rows])

    return mapped_or_looped(mapped, looped)


@dataclass(frozen=True)
class OutputGraph:
    """One batch's output with its graph down to the parameters.

    Attributes:
        engine: Ran the model.
        output: The whole output.
        leaves: The parameters that it was computed from, by name.
    """

    engine: GradientEngine
    output: Tensor
    leaves: Mapping[str, Tensor]

    @classmethod
    def of(cls, engine: GradientEngine, inputs: ModelInputs) -> "OutputGraph":
        """Run the model once. Memory: every activation above the lowest chosen parameter, as long as this object lives."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in engine.subset.tensors.items()}
        with held_still(engine.adapter.module), plain_kernels(), engine.subset.replaced(leaves):
            return cls(engine, engine.adapter.run(*inputs.args, **inputs.kwargs), leaves)

    def pulled(self, cotangents: Float[Tensor, "feature ..."]) -> dict[str, Float[Tensor, "feature d_out d_in"]]:
        """Jᵀ r summed over the batch, for every feature's own cotangents of the whole output, as matrices by name.

        Cost: one backward pass per feature, all in one where the model can be vmapped.
        """
        cotangents = cotangents.to(self.output.dtype)

        def mapped() -> tuple[Tensor, ...]:
            return self._backward(cotangents, is_batched=True)

        def looped() -> tuple[Tensor, ...]:
            rows = [self._backward(cotangent, is_batched=False) for cotangent in cotangents]
            return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))

        tensors = mapped_or_looped(mapped, looped)
        views = self.engine.subset.views
        return {view.name: view.to_matrix(at_least_float32(tensor)) for view, tensor in zip(views, tensors, strict=True)}

    def _backward(self, cotangent: Tensor, *, is_batched: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            self.output,
            list(self.leaves.values()),
            cotangent,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=is_batched,
        )
