"""Steps in the parameters and what they do to the output: J by forward mode, Jᵀ by one graph of a whole batch."""

import warnings
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.gradients.engine import GradientEngine
from param_features.gradients.state import copied_buffers, held_still, plain_kernels
from param_features.inputs import ModelInputs

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
    with held_still(adapter.module), torch.no_grad(), plain_kernels():
        return _map_features(push, tangents, n_features, n_together(engine, inputs))


def n_together(engine: GradientEngine, inputs: ModelInputs) -> int:
    """How many directions' output changes fit in memory together: 128 MiB of them, at least one."""
    n_positions = inputs.tokens.numel() if inputs.tokens is not None else inputs.tensors[0].numel()
    return max(1, _JVP_NUMBERS // max(1, n_positions * (engine.adapter.d_vocab or 1)))


def _map_features(push, tangents: dict[str, Tensor], n_features: int, n_at_once: int) -> Tensor:
    """Vmap in chunks that fit; models that vmap cannot map go one feature at a time."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return torch.func.vmap(push, randomness="same", chunk_size=min(n_features, n_at_once))(tangents)
    except (RuntimeError, NotImplementedError):
        rows = [{name: tensor[k] for name, tensor in tangents.items()} for k in range(n_features)]
        return torch.stack([push(row) for row in rows])
