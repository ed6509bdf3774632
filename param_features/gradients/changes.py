"""The output's Jacobian J in the parameters: J v by forward mode where that runs, Jᵀ r by a graph for a whole batch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients.capture import differentiable
from param_features.gradients.double_backward import changes_along
from param_features.gradients.engine import GradientEngine, at_least_float32
from param_features.gradients.mapping import CANNOT_MAP, mapped_or_looped
from param_features.gradients.stopped import StopsWithoutGrad
from param_features.params import copied_buffers, held_still, plain_kernels, untied
from param_features.problem import ModelInputs

Matrices = Mapping[str, Float[Tensor, "feature d_out d_in"]]
Reduce = Callable[[Tensor], Tensor]

_JVP_NUMBERS = 2**25
_FORWARD_MODE = "forward mode"


def output_changes(
    engine: GradientEngine,
    matrices: Matrices,
    inputs: ModelInputs,
    reduce: Reduce = lambda change: change,
) -> Float[Tensor, "feature ..."]:
    """J v_k, the change of the whole output per unit step along each direction, reduced by `reduce` while it exists.

    Cost: one forward-mode pass per direction; the ordinary pass is shared by directions that fit in memory together. Where
    a layer of the model has no forward mode, two backward passes more, and one per direction (see `changes_along`); the
    engine remembers that. Attention and LSTMs run by their plain kernels meanwhile, since the fused ones have neither.

    Args:
        engine: Runs the model.
        matrices: Directions as dense matrices by parameter name.
        inputs: One batch.
        reduce: Takes the change of one direction, of the output's shape.

    Raises:
        ModelStateError: Torch can differentiate the model neither in forward mode nor twice, and its output is large.
    """
    if engine.remembered.get(_FORWARD_MODE, True):
        try:
            return _pushed(engine, matrices, inputs, reduce)
        except CANNOT_MAP:
            pass
    changes = OutputGraph.of(engine, inputs).pushed(matrices, reduce)
    engine.remembered[_FORWARD_MODE] = False
    return changes


def has_forward_mode(engine: GradientEngine, inputs: ModelInputs) -> bool:
    """Whether forward mode runs through the model: tried on one row at first, and remembered."""
    if _FORWARD_MODE not in engine.remembered:
        direction = {view.name: torch.ones(1, *view.matrix_shape) for view in engine.subset.views}
        try:
            _pushed(engine, direction, inputs.rows(slice(0, 1)), lambda change: change.sum())
        except CANNOT_MAP:
            engine.remembered[_FORWARD_MODE] = False
        else:
            engine.remembered[_FORWARD_MODE] = True
    return engine.remembered[_FORWARD_MODE]


def _pushed(engine: GradientEngine, matrices: Matrices, inputs: ModelInputs, reduce: Reduce) -> Tensor:
    """J v_k by forward mode."""
    subset, adapter = engine.subset, engine.adapter
    tangents = _tangents(engine, matrices)
    primals = {name: tensor.detach() for name, tensor in subset.tensors.items()}

    def run(tensors: dict[str, Tensor]) -> Tensor:
        with subset.replaced(tensors), copied_buffers(adapter.module), StopsWithoutGrad():
            return adapter.run(*inputs.args, **inputs.kwargs)

    def push(tangent: dict[str, Tensor]) -> Tensor:
        return reduce(torch.func.jvp(run, (primals,), (tangent,))[1])

    n_features = len(next(iter(tangents.values())))
    with held_still(adapter.module), plain_kernels(), untied(adapter.module):
        return _map_features(push, tangents, n_features, n_together(engine, inputs))


def _tangents(engine: GradientEngine, matrices: Matrices) -> dict[str, Float[Tensor, "feature ..."]]:
    subset = engine.subset
    return {name: subset[name].from_matrix(matrix.detach()).to(subset[name].tensor) for name, matrix in matrices.items()}


def n_together(engine: GradientEngine, inputs: ModelInputs) -> int:
    """How many directions' output changes fit in memory together: 128 MiB of them, at least one."""
    ids = inputs.sample_mask if inputs.tokens is None else inputs.tokens
    n_positions = inputs.tensors[0].numel() if ids is None else ids.numel()
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
        still = held_still(engine.adapter.module)
        with still, plain_kernels(), differentiable(engine.subset, leaves):
            return cls(engine, engine.adapter.run(*inputs.args, **inputs.kwargs), leaves)

    def pushed(self, matrices: Matrices, reduce: Reduce) -> Float[Tensor, "feature ..."]:
        """J v_k reduced, by backward passes alone; see `changes_along`."""
        tangents = _tangents(self.engine, matrices)
        steps = [[tangents[name][k] for name in self.leaves] for k in range(len(next(iter(tangents.values()))))]
        with self._as_it_ran(), torch.enable_grad(), plain_kernels():
            return torch.stack(
                [reduce(change) for (change,) in changes_along([self.output], [*self.leaves.values()], steps)]
            )

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
        with self._as_it_ran():
            return torch.autograd.grad(
                self.output,
                list(self.leaves.values()),
                cotangent,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
                is_grads_batched=is_batched,
            )

    @contextmanager
    def _as_it_ran(self) -> Iterator[None]:
        """Run a backward pass with the model as it was in the forward pass, since checkpointed layers run again."""
        with held_still(self.engine.adapter.module), self.engine.subset.replaced(self.leaves):
            yield
