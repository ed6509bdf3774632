"""Holding the user's model still: evaluation mode, frozen weights, untouched random state, exact restoration."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from param_features.errors import InferenceModeError


@contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """Run a block with the module in evaluation mode and every parameter frozen; restore both, and the RNG, on exit.

    Frozen weights keep the graph small: nothing below the lowest tapped parameter is recorded. The fast path of torch's
    attention layers is switched off meanwhile, since it skips the hooks of its own submodules.

    Raises:
        InferenceModeError: Under `torch.inference_mode()` nothing could be differentiated.
    """
    if torch.is_inference_mode_enabled():
        raise InferenceModeError(
            "torch.inference_mode() is on, and records no gradients. Call this outside the block; the model's weights are "
            "frozen meanwhile anyway, and torch.no_grad() does no harm."
        )
    modes = [(child, child.training) for child in module.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = {parameter.device.index or 0 for parameter in module.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        try:
            for child, _ in modes:
                child.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        finally:
            for child, training in modes:
                child.training = training
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            torch.backends.mha.set_fastpath_enabled(fast_path)
