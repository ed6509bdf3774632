"""How much memory there is, and refusing what does not fit in it."""

import os
from contextlib import suppress
from pathlib import Path

import torch

from param_features.errors import MemoryEstimateError
from param_features.estimate.sizes import Sizes

_LEAST_BATCH = 128
_ADVICE = {
    "n_samples": "n_samples={}",
    "n_features": "n_features={}",
    "batch_size": "fit=pf.FitSettings(batch_size={})",
    "store": "store=pf.harvest(…, directory=…), which keeps them on disk",
}


def held_bytes(device: torch.device) -> int:
    """What this process holds now: of the device's memory on a GPU, resident otherwise; 0 where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_bytes(device: torch.device) -> int:
    """What a process may still take: the device's free memory on a GPU; otherwise what the system can make available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def advice(fitting: dict[str, int]) -> str:
    """What to set, as it is written in a call."""
    return " or ".join(_ADVICE[name].format(f"{n:_}") for name, n in fitting.items())


def check_room(sizes: Sizes, budget: int) -> None:
    """Refuse a decomposition whose largest stage would not fit.

    Raises:
        MemoryEstimateError: Names the stage, the estimate, what is free, and the settings with which it would fit.
    """
    if sizes.peak_bytes <= budget:
        return
    fitting = sizes.within(budget)
    then = f"Set {advice(fitting)}" if fitting else "Take fewer features and fewer samples, or fewer parameters"
    raise MemoryEstimateError(
        f"{sizes.n_features} features of rank {sizes.rank} from {sizes.n_train + sizes.n_held_out:,} samples of "
        f"{sizes.sample_bytes / 2**10:,.0f} KiB need about {sizes.peak_bytes / 2**30:.1f} GiB of memory in the stage "
        f"{sizes.largest!r}; {budget / 2**30:.1f} GiB are free. {then}."
    )
