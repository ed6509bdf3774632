"""What a fine-tuning can train: coefficients of directions, peft's LoRA, or low-rank factors without peft."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.formats import LowRank
from param_features.gradients import Dense, GradientEngine, Gradients, at_least_float32, differentiable
from param_features.intervene.combine import combined, moved
from param_features.intervene.layers import peft_kind
from param_features.intervene.lora import peft
from param_features.intervene.optimise import Trainable
from param_features.intervene.task import Task, chunks
from param_features.params import adapter_for
from param_features.problem import ModelInputs


def coefficients_of(engine: GradientEngine, directions: LowRank) -> Trainable:
    """One number for each direction, zero at first: W + Σ δ_k v_k."""
    steps = torch.zeros(directions.n_features, device=engine.device, requires_grad=True)

    return _trainable(engine, (steps,), lambda: combined(directions, steps))


def lora_without_peft(engine: GradientEngine, rank: int, seed: int) -> Trainable:
    """W + B·A for the matrix of each parameter, with peft's start: A uniform as in a linear layer, B zero."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for view in engine.subset.views:
        d_out, d_in = view.matrix_shape
        like = at_least_float32(view.tensor.detach()[:0])
        A = (torch.rand(rank, d_in, dtype=torch.float32, generator=generator) * 2 - 1) / math.sqrt(d_in)
        factors[view.name] = (A.to(like).requires_grad_(), torch.zeros(d_out, rank).to(like).requires_grad_())

    tensors = tuple(tensor for pair in factors.values() for tensor in pair)
    return _trainable(engine, tensors, lambda: {name: B @ A for name, (A, B) in factors.items()})


def _trainable(
    engine: GradientEngine, tensors: tuple[Tensor, ...], change: Callable[[], dict[str, Float[Tensor, "d_out d_in"]]]
) -> Trainable:
    """Numbers that make a change of each parameter's matrix."""

    def placed() -> AbstractContextManager[None]:
        return differentiable(engine.subset, moved(engine.subset, change()))

    def run(inputs: ModelInputs) -> Tensor:
        with placed():
            return engine.adapter.run(*inputs.args, **inputs.kwargs)

    return Trainable(tensors, run, placed)


def peft_fits(engine: GradientEngine) -> bool:
    """Whether peft's LoRA can be put on exactly these parameters: whole weights of a Hugging Face model's layers."""
    views = engine.subset.views
    is_whole = all(view.attribute == "weight" and view.layout.part is None and not view.also_at for view in views)
    is_plain = engine.adapter.is_wrapped_by_peft and is_whole
    return is_plain and all(peft_kind(view.owner) in ("linear", "conv1d") for view in views)


def peft_lora(engine: GradientEngine, rank: int, seed: int) -> Trainable:
    """LoRA by peft itself, with its defaults and a scaling of 1, on a copy of the model.

    Raises:
        MissingExtraError: peft is not installed.
    """
    library = peft()
    copy = deepcopy(engine.adapter.module)
    names = {owner: name for name, owner in engine.adapter.module.named_modules()}
    targets = [names[view.owner] for view in engine.subset.views]
    kinds = {peft_kind(view.owner) for view in engine.subset.views}
    config = library.LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, fan_in_fan_out="conv1d" in kinds)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        wrapped = library.get_peft_model(copy, config)
    wrapped.eval()
    adapter = adapter_for(wrapped.get_base_model()).reading(output=engine.adapter.given_output)
    factors = tuple(parameter for parameter in wrapped.parameters() if parameter.requires_grad)
    return Trainable(factors, lambda inputs: adapter.run(*inputs.args, **inputs.kwargs))


def first_order(engine: GradientEngine, task: Task, directions: LowRank, batch_size: int) -> Float[Tensor, " feature"]:
    """∂loss/∂δ_k at δ = 0 for each direction. Cost: a forward and a backward pass over the data."""
    subset, adapter = engine.subset, engine.adapter
    total, weights = torch.zeros(directions.n_features), 0
    for index in chunks(len(task.inputs), batch_size):
        leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in subset.tensors.items()}

        with differentiable(subset, leaves):
            value, weight = task.value(lambda inputs: adapter.run(*inputs.args, **inputs.kwargs), index)
            slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        by_name = dict(zip(leaves, slopes, strict=True))
        gradients: Gradients = {
            view.name: Dense(view.to_matrix(at_least_float32(by_name[view.name])).unsqueeze(0)) for view in subset.views
        }
        total = total + weight * directions.inner(gradients)[0].detach().cpu()
        weights += weight
    return total / weights
