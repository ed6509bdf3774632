"""Where positions part: the last place below which a sample's gradient still meets only its own position.

Above the last attention every position goes its own way, so one backward pass takes the cotangents of all positions of a
row that far. What mixes positions must be gone through once for each of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from param_features.gradients.capture import argument
from param_features.gradients.engine import GradientEngine
from param_features.gradients.graph import leads_past
from param_features.params import held_still
from param_features.problem import ModelInputs


def find_cut(engine: GradientEngine, inputs: ModelInputs) -> nn.Module | None:
    """The module whose input is that place; None where there is none, a sample is an input, or it has one position.

    Both are read from the graph. NaN put into one position's cotangent comes out at all positions that it is connected with,
    whatever the weights; and no way from the root to a parameter may lead past the place. Cost: two passes of the inputs.
    """
    if not engine.per_position or inputs.n_pos < 2:
        return None
    first_inputs: dict[nn.Module, Tensor] = {}
    with held_still(engine.adapter.module), torch.autograd.set_detect_anomaly(False):
        with _noting_inputs(engine.adapter.module, first_inputs), engine.capturing(len(inputs)) as capture:
            root = engine.root(inputs, capture)
        sites = [tensor for outputs in capture.outputs.values() for tensor in outputs]
        sites += [use.output for use in capture.uses]
        on_graph = {module: tensor for module, tensor in first_inputs.items() if tensor.requires_grad}
        places = {module: tensor for module, tensor in on_graph.items() if tensor.shape[:2] == root.shape[:2]}
        with engine.running_again(len(inputs)):
            apart = _kept_apart(root, places)
        below_root = {module: tensor for module, tensor in apart.items() if tensor is not root}
        return next((module for module, tensor in below_root.items() if not leads_past(root, tensor, sites)), None)


@contextmanager
def _noting_inputs(model: nn.Module, first_inputs: dict[nn.Module, Tensor]) -> Iterator[None]:
    """Note every module's first argument, in the order of the last calls."""

    def note(module: nn.Module, args: tuple, kwargs: dict) -> None:
        tensor = argument(args, kwargs, 0)
        first_inputs.pop(module, None)
        if isinstance(tensor, Tensor) and tensor.dim() == 3:
            first_inputs[module] = tensor

    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    handles = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept_apart(root: Tensor, places: dict[nn.Module, Tensor]) -> dict[nn.Module, Tensor]:
    """The places at which the last position's cotangent comes out at the last position alone."""
    if not places:
        return {}
    cotangent = torch.zeros_like(root)
    cotangent[:, -1] = torch.nan
    gradients = torch.autograd.grad(root, list(places.values()), cotangent, retain_graph=True, allow_unused=True)
    reached = [None if gradient is None else gradient.isnan().any(2).any(0) for gradient in gradients]
    return {
        module: tensor
        for (module, tensor), where in zip(places.items(), reached, strict=True)
        if where is not None and bool(where[-1]) and not bool(where[:-1].any())
    }
