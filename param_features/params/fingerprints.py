"""Fingerprints of parameters: equal where the matrices are equal bit for bit, whatever library holds them."""

import hashlib

import torch

from param_features.params.offloaded import values_of
from param_features.params.views import ParamView


def fingerprint(view: ParamView) -> str:
    """SHA-256 of the dtype, shape and bytes of the parameter's matrix.

    Cost: a copy of it to the CPU; reads values that `device_map=` put elsewhere.
    """
    data = view.to_matrix(view.layout.read(values_of(view)).detach()).cpu().contiguous()
    header = f"{data.dtype} {tuple(data.shape)}".encode()
    return hashlib.sha256(header + data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
