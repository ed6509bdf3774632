"""The machine that the library runs on: memory, processes, and calls checked at run time."""

from param_features.machine.checked_calls import typed
from param_features.machine.memory import free_bytes, held_bytes
from param_features.machine.messages import notify, spoken
from param_features.machine.processes import ALONE, Processes, Share, alone, launched

__all__ = ["ALONE", "Processes", "Share", "alone", "free_bytes", "held_bytes", "launched", "notify", "spoken", "typed"]
