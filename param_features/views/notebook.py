"""What a notebook's kernel tells about the page that its output goes to."""

import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class _Carrier:
    """The cell whose output carries the script for the whole notebook.

    Attributes:
        cell: Its id, or its code where the front end gives none; None before the first view.
        run: The execution that displayed it.
    """

    cell: str | None = None
    run: str | None = None


_CARRIER = _Carrier()


def kernel() -> Any:
    """The IPython shell with a kernel that runs us, None in a terminal; IPython is never imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell if shell is not None and hasattr(shell, "kernel") else None


def takes_script() -> bool:
    """Whether the output that is about to be displayed must bring the script, and remember that it did.

    Once in a notebook: the first output brings it for all, and again where its cell is run again, since that replaces the
    output. Always in Colab, which puts every output on a page of its own, and where no kernel runs.
    """
    shell = kernel()
    if shell is None or "google.colab" in sys.modules:
        return True
    cell, run = _place(shell)
    if _CARRIER.cell is None or (cell == _CARRIER.cell and run != _CARRIER.run):
        _CARRIER.cell, _CARRIER.run = cell, run
        return True
    return False


def _place(shell: Any) -> tuple[str, str]:
    """The running cell and the message that runs it; two cells of the same code count as one where cells have no id."""
    message = shell.get_parent() if hasattr(shell, "get_parent") else {}
    code = message.get("content", {}).get("code", "")
    return str(message.get("metadata", {}).get("cellId", code)), str(message.get("header", {}).get("msg_id", ""))
