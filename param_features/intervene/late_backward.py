"""Backward passes that run layers again, or read weights again, after the steering of their forward pass has ended.

Gradient checkpointing calls layers a second time during the backward pass, and saved-tensor hooks may keep a weight itself
rather than its values: both meet the weights as they are by then. Elsewhere torch keeps count of changes in place, and
would refuse by itself, without saying why.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from param_features.errors import ModelStateError
from param_features.machine import has_saved_tensor_hooks

_N_CHANGES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How often steering began or ended at a layer."""

_MOST_NODES = 200
"""Of the graph of one layer are looked at; there are fewer in all but odd ones."""


@contextmanager
def refusing_late_backward(model: nn.Module, weights: Mapping[nn.Module, list[Tensor]]) -> Iterator[None]:
    """Mark the passes of a block that steers: their gradients are refused where they would be those of other weights.

    Cost: a hook at every module, and a look at the graph of each steered layer.

    Args:
        model: Whose passes.
        weights: The layers that act otherwise in the block, with their weights that are changed in place.

    Raises:
        ModelStateError: In the backward pass.
    """
    handles = _watched(model, weights)
    _count_change(weights)
    try:
        yield
    finally:
        _count_change(weights)
        for handle in handles:
            handle.remove()


def _watched(model: nn.Module, weights: Mapping[nn.Module, list[Tensor]]) -> list[RemovableHandle]:
    """Hooks that find out at the layers, and the modules around them, what the backward pass will need, and mark outputs."""
    is_uncertain: dict[nn.Module, bool] = {}

    def find_out(module: nn.Module, args: tuple) -> None:
        if torch.compiler.is_compiling():
            return
        # Reentrant checkpointing runs layers without gradients at first.
        is_uncertain[module] = not torch.is_grad_enabled() or has_saved_tensor_hooks()

    def mark(module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if torch.compiler.is_compiling():
            return
        is_marked = any(is_uncertain.values())
        if not is_marked and module in weights:
            is_marked = _keeps(weights[module], _tensors((args, kwargs)), _tensors(output))
        if is_marked:
            for tensor in _tensors(output):
                if tensor.requires_grad:
                    tensor.register_hook(_refusing_changes(weights))

    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    around = [module for module in modules if any(child in weights for child in module.modules())]
    return [module.register_forward_pre_hook(find_out) for module in around] + [
        module.register_forward_hook(mark, with_kwargs=True) for module in modules
    ]


def _keeps(weights: list[Tensor], inputs: Iterable[Tensor], outputs: Iterable[Tensor]) -> bool:
    """Whether the graph from a layer's inputs to its outputs keeps a weight itself, whose change torch would refuse."""
    memory = {weight.untyped_storage().data_ptr() for weight in weights}
    below = {tensor.grad_fn for tensor in inputs}
    nodes = {tensor.grad_fn: None for tensor in outputs}
    for node in (growing := list(nodes)):
        if node is None or node in below:
            continue
        saved = (getattr(node, name) for name in dir(node) if name.startswith("_saved_"))
        if any(isinstance(part, Tensor) and part.untyped_storage().data_ptr() in memory for part in saved):
            return True
        further = [following for following, _ in node.next_functions if following not in nodes]
        nodes |= dict.fromkeys(further)
        growing += further
        if len(growing) > _MOST_NODES:
            return False
    return False


def _refusing_changes(layers: Iterable[nn.Module]) -> Any:
    layers = list(layers)
    before = [_N_CHANGES[layer] for layer in layers]

    def refuse(_: Tensor) -> None:
        if [_N_CHANGES[layer] for layer in layers] != before:
            raise ModelStateError(
                "This backward pass needs the weights of layers that were steered in its forward pass (gradient "
                "checkpointing and saved-tensor hooks run or read them again), and the steering has ended or changed since. "
                "Call backward() inside the same block as the forward pass."
            )

    return refuse


def _count_change(layers: Iterable[nn.Module]) -> None:
    for layer in layers:
        _N_CHANGES[layer] = _N_CHANGES.get(layer, 0) + 1


def _tensors(output: Any) -> Iterator[Tensor]:
    """The tensors in what a module returned."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(tuple(output.values()))
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _tensors(part)
