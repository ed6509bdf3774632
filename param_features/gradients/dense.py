"""Gradients without a layer rule: `torch.func` over samples, or autograd for one sample at a time."""

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from param_features.gradients.capture import differentiable
from param_features.gradients.mapping import mapped_or_looped, quiet_loops
from param_features.gradients.rows import at_least_float32
from param_features.gradients.types import Dense, Gradients
from param_features.params import Adapter, ParamSubset
from param_features.problem import ModelInputs


def dense_gradients(
    adapter: Adapter, subset: ParamSubset, inputs: ModelInputs, cotangent: Tensor, *, maps: bool, must_map: bool
) -> Gradients:
    """∂⟨output, cotangent⟩/∂W of each row, for parameters of the dense route.

    Args:
        adapter: The model's.
        subset: The parameters.
        inputs: One batch.
        cotangent: ∂D/∂f in the shape of the outputs.
        maps: Whether vmap may take all rows at once.
        must_map: Whether what vmap cannot map is an error, rather than taken one row at a time.
    """

    def mapped() -> dict[str, Tensor]:
        return _vmapped(adapter, subset, inputs, cotangent)

    def looped() -> dict[str, Tensor]:
        return _one_by_one(adapter, subset, inputs, cotangent)

    if must_map:
        with quiet_loops():
            tensors = mapped()
    elif maps:  # inputs may be unmappable though the planned ones were not, such as a mask
        tensors = mapped_or_looped(mapped, looped)
    else:
        tensors = looped()
    return {view.name: Dense(view.to_matrix(at_least_float32(tensors[view.name]))) for view in subset.views}


def _vmapped(adapter: Adapter, subset: ParamSubset, inputs: ModelInputs, cotangent: Tensor) -> dict[str, Tensor]:
    """`torch.func.vjp` of one sample, mapped over the batch. Cost: one forward and backward pass of the whole model.

    Attention runs under the math backend meanwhile, since vmap would loop over the fused kernels.
    """
    bare = ModelInputs(inputs.args, inputs.kwargs)

    def pull(row: list[Tensor], cotangent: Tensor) -> dict[str, Tensor]:
        def run(tensors: dict[str, Tensor]) -> Tensor:
            values = iter(row)
            sample_inputs = bare.map(lambda _: next(values).unsqueeze(0))
            with subset.replaced(tensors):
                return adapter.run(*sample_inputs.args, **sample_inputs.kwargs)

        output, vjp, *_ = torch.func.vjp(run, subset.tensors)
        return vjp(cotangent.reshape(output.shape))[0]

    with sdpa_kernel(SDPBackend.MATH):
        return torch.func.vmap(pull, randomness="same", chunk_size=32)(bare.tensors, cotangent)


def _one_by_one(adapter: Adapter, subset: ParamSubset, inputs: ModelInputs, cotangent: Tensor) -> dict[str, Tensor]:
    """A loop of `torch.autograd.grad`, one sample at a time: the slow obvious route that every other must equal."""
    rows = [per_sample_gradient(adapter, subset, inputs.rows([row]), cotangent[[row]]) for row in range(len(inputs))]
    return {name: torch.stack([row[name] for row in rows]) for name in subset.names}


def per_sample_gradient(adapter: Adapter, subset: ParamSubset, inputs: ModelInputs, cotangent: Tensor) -> dict[str, Tensor]:
    """∂⟨output, cotangent⟩/∂W for a batch of one, by `torch.autograd.grad`; zero where a parameter is unused."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in subset.tensors.items()}
    with differentiable(subset, leaves):
        output = adapter.run(*inputs.args, **inputs.kwargs)
        return gradients_of(output, leaves, cotangent)


def gradients_of(output: Tensor, leaves: dict[str, Tensor], cotangent: Tensor) -> dict[str, Tensor]:
    """∂⟨output, cotangent⟩ by each leaf; zero where one is unused, strided where torch would give a sparse one."""
    if not output.requires_grad:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(output, list(leaves.values()), cotangent, allow_unused=True, materialize_grads=True)
    strided = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients]
    return dict(zip(leaves, strided, strict=True))
