"""Several processes that share one run, as Hugging Face accelerate launched them: each takes its part, all know the whole.

Every process makes the same calls with the same arguments and draws the same random numbers; only what costs time is shared
out. Where accelerate launched nothing, none of this imports it or changes a bit.
"""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from param_features.errors import MissingExtraError, ParamFeaturesError, SettingError

Result = TypeVar("Result")

_PIECE = 2**24
_is_alone: ContextVar[bool] = ContextVar("_is_alone", default=False)


@dataclass(frozen=True)
class Processes:
    """How many processes share the run, and which of them this one is.

    Attributes:
        n: How many.
        index: From 0, the main one.
    """

    n: int = 1
    index: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this one writes files, prints and shows progress."""
        return self.index == 0

    @property
    def n_on_machine(self) -> int:
        """How many of the processes share the memory of this machine."""
        return 1 if self.n == 1 else int(os.environ.get("LOCAL_WORLD_SIZE", self.n))

    def share(self, n_items: int) -> "Share":
        """Give this process its part of some items; all of them where they are fewer than the processes."""
        return Share(self if n_items >= self.n else ALONE, n_items)

    def objects(self, result: Any) -> list[Any]:
        """Collect one result of every process, in the order of the processes."""
        if self.n == 1:
            return [result]
        from accelerate.utils import gather_object

        return gather_object([result])

    def least(self, number: int) -> int:
        """Return the smallest of the numbers that the processes have."""
        return min(self.objects(number))

    def from_main(self, find: Callable[[], Result]) -> Result:
        """Return what the main process finds; the others wait for it, and raise what it raises."""
        return self.all_of(find if self.is_main else lambda: None)[0]

    def all_of(self, find: Callable[[], Any]) -> list[Any]:
        """Return what every process finds, in their order; an error in any is raised in all, so that none waits for ever."""
        result = error = None
        try:
            result = find()
        except (ParamFeaturesError, OSError) as raised:
            if self.n == 1:
                raise
            error = raised
        outcomes = self.objects((result, error))
        failed = next((raised for _, raised in outcomes if raised is not None), None)
        if failed is not None:
            raise failed if error is None else error
        return [each for each, _ in outcomes]

    def spread_(self, tensor: Tensor, source: int = 0) -> None:
        """Fill a contiguous tensor with what it holds in one of the processes."""
        if self.n == 1:
            return
        from accelerate.utils import broadcast

        for piece in tensor.detach().reshape(-1).split(_PIECE):
            sent = piece.to(_device())
            broadcast(sent, from_process=source)
            if sent.data_ptr() != piece.data_ptr():
                piece.copy_(sent)


@dataclass(frozen=True)
class Share:
    """A process's part of some items in a row: near-equal parts that follow each other.

    Attributes:
        processes: Who shares them.
        n_items: How many there are.
    """

    processes: Processes = Processes()
    n_items: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether this process has all of the items."""
        return self.processes.n == 1

    def part(self, index: int) -> slice:
        """Tell which items the process of that index has."""
        n = self.processes.n
        return slice(self.n_items * index // n, self.n_items * (index + 1) // n)

    @property
    def items(self) -> slice:
        """Which items this process has."""
        return self.part(self.processes.index)

    @property
    def weight(self) -> float:
        """Which share of the items it has: a mean over its own, times this, adds up to the mean over all."""
        return 1.0 if self.is_whole else (self.items.stop - self.items.start) / self.n_items

    def of(self, whole: Tensor) -> Tensor:
        """Take this process's rows out of what belongs to all items."""
        return whole if self.is_whole else whole[self.items]

    def gathered(self, rows: Tensor) -> Tensor:
        """Put the rows of all items together, of which each process has its part; no gradient flows through it."""
        if self.is_whole:
            return rows
        parts = [self.part(index) for index in range(self.processes.n)]
        return torch.cat(_gathered(rows, [part.stop - part.start for part in parts]))

    def joined(self, rows: Tensor) -> Tensor:
        """Put the rows that each process found together, any number of each; gradients flow to this process's rows alone."""
        if self.is_whole:
            return rows
        parts = _gathered(rows, self.processes.objects(len(rows)))
        parts[self.processes.index] = rows
        return torch.cat(parts)

    def sum_(self, tensors: list[Tensor]) -> None:
        """Put the sum over processes in the place of each tensor; the same bits in all. Cost: one exchange of them all."""
        if self.is_whole:
            return
        from accelerate.utils import reduce

        flat = torch.cat([tensor.detach().flatten().to(_device()) for tensor in tensors])
        total: Any = reduce(flat, reduction="sum")
        for tensor, part in zip(tensors, total.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.detach().copy_(part.view_as(tensor))


def _gathered(rows: Tensor, sizes: list[int]) -> list[Tensor]:
    """Return the rows of every process; `sizes` says how many each has."""
    from accelerate.utils import gather

    padded = rows.new_zeros(max(sizes), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = gather(padded.to(_device())).to(rows.device).split(max(sizes))  # pyright: ignore
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]


ALONE = Processes()
"""One process that has everything."""


def launched() -> Processes:
    """The processes that share this run: those that accelerate launched, or this one alone.

    Raises:
        MissingExtraError: accelerate's variables are set and it is not installed.
        SettingError: accelerate does not see the processes that were launched.
    """
    if _is_alone.get() or not _is_one_of_several():
        return ALONE
    state = _state()
    return Processes(state.num_processes, state.process_index)


@contextmanager
def waiting_for_none() -> Iterator[None]:
    """Run a block whose calls wait for no other process."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def _is_one_of_several() -> bool:
    """Whether accelerate's state says so where there is one, or else the variables that `accelerate launch` sets."""
    state = sys.modules.get("accelerate.state")
    if state is not None and state.PartialState._shared_state:
        return state.PartialState().num_processes > 1
    is_launched = any(name.startswith("ACCELERATE_") for name in os.environ)
    return is_launched and int(os.environ.get("WORLD_SIZE", 1)) > 1


def _state() -> Any:
    """The state that accelerate keeps, made at the first call: the processes meet there."""
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError(
            f"{os.environ.get('WORLD_SIZE')} processes were launched, and accelerate cannot be imported: {error}. Run: pip "
            'install "param_features[hf]".'
        ) from error
    is_new = not PartialState._shared_state
    state = PartialState(cpu=_is_on_cpu()) if is_new else PartialState()
    if is_new:
        atexit.register(state.destroy_process_group)  # its threads would end the interpreter with an abort now and then
    if is_new and state.num_processes != int(os.environ["WORLD_SIZE"]):
        raise SettingError(
            f"{os.environ['WORLD_SIZE']} processes were launched, and accelerate knows of {state.num_processes} on "
            f"{state.device}. Set ACCELERATE_USE_CPU=true for processes that talk over the CPU."
        )
    return state


def _is_on_cpu() -> bool:
    """Whether processes talk over the CPU: where it was asked for, or there is no device that could."""
    is_wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    device = torch.accelerator.current_accelerator()
    return is_wanted or device is None or device.type == "mps" or not torch.accelerator.is_available()


def _device() -> torch.device:
    """The device on which tensors must lie to be sent to other processes."""
    return _state().device
