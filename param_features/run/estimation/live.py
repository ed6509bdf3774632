"""How many bytes of tensors a block of code makes at most: counted at every operation, on any device."""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside the block and are alive at once.

    What an operation needs within itself (a copy for a matrix product, LAPACK's workspace) is not seen. Cost: some
    microseconds an operation.

    Attributes:
        now: Bytes of such tensors that are alive.
        peak: The most there were.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be left out by torch's compiler would import it, and take some 100 MiB."""
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation; what it was given was there before, what it returns is new."""
        for argument in tree_leaves((args, kwargs)):
            self._count(argument, counts=False)
        result = func(*args, **(kwargs or {}))
        for output in tree_leaves(result):
            self._count(output, counts=True)
        return result

    def _count(self, value: Any, *, counts: bool) -> None:
        for part in _parts(value):
            storage = part.untyped_storage()
            if storage not in self._known:
                n_bytes = storage.nbytes() if counts else 0
                self._known[storage] = n_bytes
                self._add(n_bytes)
                weakref.finalize(storage, self._add, -n_bytes).atexit = False

    def _add(self, n_bytes: int) -> None:
        self.now += n_bytes
        self.peak = max(self.peak, self.now)


def _parts(value: Any) -> tuple[Tensor, ...]:
    """The tensors that hold a value's numbers: itself, or those of a sparse one."""
    if not isinstance(value, Tensor):
        return ()
    if value.layout == torch.strided:
        return (value,)
    if value.layout == torch.sparse_csr:
        return value.crow_indices(), value.col_indices(), value.values()
    return ()
