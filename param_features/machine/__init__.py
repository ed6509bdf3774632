"""The machine that the library runs on: memory, processes, and calls checked at run time."""

from param_features.machine.blocks import Block, alone
from param_features.machine.checked_calls import typed
from param_features.machine.memory import free_bytes, held_bytes
from param_features.machine.messages import notify, spoken
from param_features.machine.modes import (
    full_precision,
    has_saved_tensor_hooks,
    methods_in_own_modes,
    own_modes,
    saved_as_they_are,
    uncompiled,
)
from param_features.machine.processes import ALONE, Processes, Share, launched
from param_features.machine.public_calls import at_home, public, shown

__all__ = [
    "ALONE",
    "Block",
    "Processes",
    "Share",
    "alone",
    "at_home",
    "free_bytes",
    "full_precision",
    "has_saved_tensor_hooks",
    "held_bytes",
    "launched",
    "methods_in_own_modes",
    "notify",
    "own_modes",
    "public",
    "saved_as_they_are",
    "shown",
    "spoken",
    "typed",
    "uncompiled",
]
