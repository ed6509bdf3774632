"""Holding the user's model still: evaluation mode, frozen weights, untouched random state, exact restoration."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from traceback import walk_tb

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointFunction

from param_features.errors import InferenceModeError, ModelStateError
from param_features.machine import own_modes
from param_features.params.conversions import quiet_conversions
from param_features.params.views import all_parameters


@dataclass(frozen=True)
class _Buffer:
    """A buffer as it was: which tensor, its version and its values."""

    owner: nn.Module
    name: str
    tensor: Tensor | None
    version: int
    values: Tensor | None

    @classmethod
    def of(cls, owner: nn.Module, name: str) -> "_Buffer":
        tensor = owner._buffers[name]
        if tensor is None or tensor.is_inference():
            return cls(owner, name, tensor, 0, None)
        return cls(owner, name, tensor, tensor._version, tensor.detach().clone())

    def restore(self) -> None:
        self.owner._buffers[self.name] = self.tensor
        if self.tensor is not None and self.values is not None and self.tensor._version != self.version:
            with torch.no_grad():
                self.tensor.copy_(self.values)


@contextmanager
def copied_buffers(module: nn.Module) -> Iterator[None]:
    """Run a block on copies of the buffers: forward mode forbids changing in place what was made outside."""
    saved = [(child, name, child._buffers[name]) for child in module.modules() for name in child._buffers]
    try:
        for child, name, tensor in saved:
            child._buffers[name] = None if tensor is None else tensor.clone()
        yield
    finally:
        for child, name, tensor in saved:
            child._buffers[name] = tensor


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Run a block with attention under the math backend and without oneDNN: fused kernels and its LSTM lack forward mode."""
    onednn = torch.backends.mkldnn
    was_enabled = onednn.enabled
    try:
        onednn.enabled = False
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        onednn.enabled = was_enabled


def _offloaded(module: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Parameters that are away: accelerate's hooks leave another object in their place at each call."""
    places = [(child, name, parameter) for child in module.modules() for name, parameter in child._parameters.items()]
    return [(owner, name, parameter) for owner, name, parameter in places if parameter is not None and parameter.is_meta]


@contextmanager
def held_still(module: nn.Module) -> Iterator[None]:
    """Run a block with the module in evaluation mode and every parameter frozen; restore both, and the RNG, on exit.

    Frozen weights keep the graph small: nothing below the lowest tapped parameter is recorded. The fast path of torch's
    attention layers is switched off meanwhile, since it skips the hooks of its own submodules. Buffers that the model
    changes as it runs (counters, caches) get their values back. Autocast and `torch.compile` are off, see `own_modes`.
    Cost: a copy of the buffers.

    Raises:
        InferenceModeError: Under `torch.inference_mode()` nothing could be differentiated.
        ModelStateError: A backward pass of the block met reentrant gradient checkpointing.
        RuntimeError: Any other error of the block is passed on.
    """
    if torch.is_inference_mode_enabled():
        raise InferenceModeError(
            "torch.inference_mode() is on, and records no gradients. Call this outside the block; the model's weights are "
            "frozen meanwhile anyway, and torch.no_grad() does no harm."
        )
    modes = [(child, child.training) for child in module.modules()]
    weights = [parameter for parameter in all_parameters(module) if not parameter.is_inference()]  # those keep their flags
    flags = [(parameter, parameter.requires_grad) for parameter in weights]
    away = _offloaded(module)
    buffers = [_Buffer.of(child, name) for child, _ in modes for name in child._buffers]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = {parameter.device.index or 0 for parameter, _ in flags if parameter.is_cuda}
    with own_modes(), torch.random.fork_rng(devices=devices), torch.enable_grad(), quiet_conversions(module):
        try:
            for child, _ in modes:
                child.training = False
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            torch.backends.mha.set_fastpath_enabled(False)
            yield
        except RuntimeError as error:
            _refuse_reentrant_checkpointing(error)
            raise
        finally:
            for child, training in modes:
                child.training = training
            for owner, name, parameter in away:
                owner._parameters[name] = parameter
            for parameter, requires_grad in flags:
                parameter.requires_grad_(requires_grad)
            for buffer in buffers:
                buffer.restore()
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _refuse_reentrant_checkpointing(error: RuntimeError) -> None:
    """Say in words what torch's reentrant checkpointing refuses in its own backward pass."""
    raised_in = [frame.f_code for frame, _ in walk_tb(error.__traceback__)][-1]
    if raised_in is CheckpointFunction.backward.__code__:
        raise ModelStateError(
            "The model uses reentrant gradient checkpointing above a chosen parameter, which gives no gradients of "
            "chosen tensors alone. Checkpoint with use_reentrant=False, or not at all."
        ) from error
