"""How tensors of a pass are laid out for rules: samples first, in float32 at least."""

import torch
from torch import Tensor


def by_row(tensor: Tensor, n_rows: int) -> Tensor:
    """With the batch first where the model merged batch and positions into one axis, as OPT's MLP does."""
    is_merged = len(tensor) > n_rows and len(tensor) % n_rows == 0
    return tensor.unflatten(0, (n_rows, -1)) if is_merged else tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Half-precision tensors in float32, others as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
