"""How much memory this process holds, and how much there is."""

import os
from contextlib import suppress
from pathlib import Path

import torch


def held_bytes(device: torch.device) -> int:
    """Tell how much memory this process holds: of the device on a GPU, else resident; 0 where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def free_bytes(device: torch.device) -> int:
    """Tell how much memory a process may still take: free on a GPU; otherwise what the system can make available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
