"""Fingerprints of parameters: equal where the matrices are equal bit for bit, whatever library holds them."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

from param_features.params.offloaded import values_of
from param_features.params.views import ParamView


def fingerprint(view: ParamView) -> str:
    """SHA-256 of the dtype, shape and bytes of the parameter's matrix.

    Cost: a copy of it to the CPU; reads values that `device_map=` put elsewhere.
    """
    return checksum([view.to_matrix(view.layout.read(values_of(view)))])


def checksum(tensors: Iterable[Tensor]) -> str:
    """SHA-256 of the dtypes, shapes and bytes of some tensors. Cost: a copy of each to the CPU."""
    digest = hashlib.sha256()
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous()
        digest.update(f"{data.dtype} {tuple(data.shape)}".encode())
        digest.update(data.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
