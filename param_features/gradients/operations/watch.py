"""A torch-function mode that notes every use of watched tensors and makes each output a root of gradients."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from param_features.errors import AdapterError
from param_features.gradients.operations.gradients import Contribution, OfStored
from param_features.gradients.operations.operands import Operand, derived
from param_features.gradients.rows import at_least_float32, by_row

Handler = Callable[..., Any]
"""(watch, *arguments of the operation) -> what the operation gives, its uses of watched tensors noted by `Watch.rooted`."""

_HANDLERS: dict[Callable, Handler] = {}

_CUTS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # pyright: ignore[reportAttributeAccessIssue]
"""What is made of a tensor here has no gradient with respect to it."""


def handles(*operations: Callable) -> Callable[[Handler], Handler]:
    """Register the decorated function for some of torch's operations."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(operations, handler))
        return handler

    return register


@dataclass(frozen=True)
class Use:
    """One use of a watched tensor.

    Attributes:
        operand: As the operation gets it.
        output: Of the operation: a root of gradients.
        contribution: Gives the gradient of the Parameter.
        spread: Gives a tensor that all samples share once to each of them.
        n_rows: Samples of the batch.
    """

    operand: Operand
    output: Tensor
    contribution: Contribution
    spread: Callable[[Tensor], Tensor]
    n_rows: int

    def gradient(self, delta: Tensor) -> OfStored:
        """The gradient of the Parameter, given that at the output.

        Raises:
            ValueError: The output has no axis for samples.
        """
        delta = by_row(at_least_float32(delta), self.n_rows)
        if len(delta) != self.n_rows:
            raise ValueError(f"an output of {len(delta)} rows is not by sample")
        return self.contribution(self.operand, delta, self._arranged)

    def _arranged(self, tensor: Tensor) -> Tensor:
        tensor = at_least_float32(tensor) if tensor.is_floating_point() else tensor
        return by_row(self.spread(tensor), self.n_rows)


class Watch(TorchFunctionMode):
    """While it is entered, notes what operations do with some Parameters.

    Cost: some microseconds for every operation.

    Attributes:
        uses: In the order of the calls.
    """

    def __init__(self, stored: Collection[Tensor], shared: Collection[Tensor], n_rows: int) -> None:
        """Watch some Parameters.

        Args:
            stored: The Parameters.
            shared: Those whose outputs have no axis for samples.
            n_rows: Samples of the batch.
        """
        super().__init__()
        self.uses: list[Use] = []
        self._unknown: dict[int, str] = {}
        self._operands = {id(tensor): (tensor, Operand(tensor)) for tensor in stored}
        self._shared, self._n_rows = {id(tensor) for tensor in shared}, n_rows

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation; note it where it is given a watched tensor."""
        kwargs = kwargs or {}
        watched = [self._operands[id(value)] for value in _tensors((args, kwargs.values())) if id(value) in self._operands]
        if not watched:
            return func(*args, **kwargs)
        n_before = len(self.uses)
        handler = _HANDLERS.get(func)
        result = NotImplemented if handler is None else handler(self, *args, **kwargs)
        if result is NotImplemented:
            result = func(*args, **kwargs)
            self._derive(func, args, kwargs, result, watched)
            return result
        noted = {id(use.operand.stored) for use in self.uses[n_before:]}
        self._refuse(func, [operand for _, operand in watched if id(operand.stored) not in noted])
        return result

    def operand(self, tensor: Any) -> Operand | None:
        """The watched Parameter behind a tensor, None where there is none."""
        return self._operands[id(tensor)][1] if id(tensor) in self._operands else None

    def rooted(self, output: Tensor, *used: tuple[Tensor | None, Contribution]) -> Tensor:
        """Note the uses of those tensors that are watched, and give back the output, from now on a root of gradients."""
        noted = [(operand, contribution) for tensor, contribution in used if (operand := self.operand(tensor)) is not None]
        if not noted:
            return output
        is_shared = any(id(operand.stored) in self._shared for operand, _ in noted)
        spread = self._for_each if is_shared else self._first_for_each if len(output) == 1 else _as_it_is
        output = spread(output)
        root = output if output.requires_grad else output.detach().requires_grad_()
        self.uses += [Use(operand, root, contribution, spread, self._n_rows) for operand, contribution in noted]
        return root.clone()

    def parts(self, tensor: Tensor, n_parts: int) -> tuple[Tensor, ...]:
        """Equal parts of a tensor along its first axis, watched where it is."""
        return self.__torch_function__(torch.chunk, (), (tensor, n_parts))

    def _for_each(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self._n_rows, *tensor.shape)

    def _first_for_each(self, tensor: Tensor) -> Tensor:
        return tensor.expand(self._n_rows, *tensor.shape[1:]) if len(tensor) == 1 else tensor

    def _derive(self, func: Callable, args: tuple, kwargs: dict, result: Any, watched: list) -> None:
        (tensor, operand), *others = watched
        if not list(_tensors((result,))) or result is tensor or func in _CUTS:
            return
        found = derived(operand, func, args, kwargs, result) if not others and args[:1] and args[0] is tensor else []
        self._operands.update({id(part): (part, of_part) for part, of_part in found if id(part) not in self._operands})
        if not found:
            self._refuse(func, [operand for _, operand in watched])

    def _refuse(self, func: Callable, operands: list[Operand]) -> None:
        for operand in operands:
            self._unknown.setdefault(id(operand.stored), resolve_name(func) or str(func))

    def why_not(self, stored: Tensor) -> str | None:
        """Why not all uses of a Parameter are known; None where they are."""
        if id(stored) in self._unknown:
            return f"{self._unknown[id(stored)]} uses it, for which there is no rule"
        return None if any(use.operand.stored is stored for use in self.uses) else "no operation uses it"

    def uses_of(self, stored: Tensor) -> list[Use]:
        """The uses of one Parameter.

        Raises:
            AdapterError: An operation used it that is not understood, or none did.
        """
        why_not = self.why_not(stored)
        if why_not is not None:
            raise AdapterError(why_not)
        return [use for use in self.uses if use.operand.stored is stored]


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _tensors(values: Any) -> Iterator[Tensor]:
    """Tensors in arguments, lists and tuples among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list) or type(value).__name__ == "dict_values":
            yield from _tensors(value)
