"""Forward mode through models that keep gradients from part of what they compute."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only


class StopsWithoutGrad(TorchFunctionMode):
    """Lets what a model computes under `torch.no_grad()` count as constant, as backward passes do.

    Torch's forward mode goes through such blocks, as in models that train the last steps of a recurrence alone, and would
    give another derivative than the gradients that features were fitted to. Cost: microseconds for each operation.
    """

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call the function, and cut its results off where gradients are switched off."""
        result = func(*args, **(kwargs or {}))
        return result if torch.is_grad_enabled() else tree_map_only(Tensor, _cut_off, result)


def _cut_off(tensor: Tensor) -> Tensor:
    """The tensor as a constant; a Parameter is one, and stays what a library expects to put into a module."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach()
