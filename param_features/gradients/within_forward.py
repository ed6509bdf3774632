"""Acting inside a module's call, where a changed weight acts: under every hook and whatever else surrounds its forward."""

from collections.abc import Callable
from functools import partial, wraps
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from param_features.errors import ModelStateError

Around = Callable[..., Any]
"""Called with what it surrounds, which is to be called with the arguments, and the arguments of the module's forward."""

_NNSIGHT = "__nnsight__"
"""Where nnsight keeps, as `body`, the forward that it hands inputs to and outputs from."""


class WithinForward:
    """Something that acts around a module's own forward, inside all else, until it is removed; the latest is innermost.

    Hooks see what it makes of the output, whenever they are registered, and so does a trace of nnsight.
    """

    def __init__(self, module: nn.Module, around: Around) -> None:
        """Begin to act.

        Raises:
            ModelStateError: In a call of the module whose forward was replaced meanwhile.
        """
        self.around = around
        self._place = _PLACES.get(module) or _Place(module)
        self._place.acting.append(self)

    def remove(self) -> None:
        """Act no longer; whichever began first may end first."""
        self._place.acting.remove(self)
        if not self._place.acting:
            self._place.leave()


class _Place:
    """The module's forward while something acts around it."""

    def __init__(self, module: nn.Module) -> None:
        self.acting: list[WithinForward] = []
        self._module, self._n_calls = module, 0
        held = module.__dict__.get("forward")
        state = module.__dict__.get(_NNSIGHT)
        self._nnsight = state if state is not None and getattr(held, "state", None) is state else None
        self._before = held if self._nnsight is None else self._nnsight.body
        self._forward = self._around(module)
        if self._nnsight is None:
            module.__dict__["forward"] = MethodType(self._forward, module)  # a copy of the module has it as its own
        else:
            self._nnsight.body = self._forward
        self._check = module.register_forward_hook(self._refuse_replaced)
        _PLACES[module] = self

    def _around(self, module: nn.Module) -> Callable[..., Any]:
        before = self._before
        own = type(module).forward if before is None else before
        takes_module = before is None or self._nnsight is not None

        @wraps(own)
        def forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self._n_calls += 1
            call = partial(own, module) if takes_module else own
            for acting in reversed(self.acting):
                call = partial(acting.around, call)
            return call(*args, **kwargs)

        return forward

    def leave(self) -> None:
        self._check.remove()
        del _PLACES[self._module]
        if not self._is_there:
            return  # it does nothing from now on
        if self._nnsight is not None:
            self._nnsight.body = self._before
        elif self._before is not None:
            self._module.__dict__["forward"] = self._before
        else:
            del self._module.__dict__["forward"]

    @property
    def _is_there(self) -> bool:
        if self._nnsight is not None:
            return self._nnsight.body is self._forward
        return getattr(self._module.__dict__.get("forward"), "__func__", None) is self._forward

    def _refuse_replaced(self, module: nn.Module, args: tuple, output: Any) -> None:
        has_run, self._n_calls = self._n_calls > 0, 0
        if not has_run and not self._is_there and self._module is module:
            raise ModelStateError(
                f"The forward of a {type(module).__name__} was replaced inside the block that acts on it, as nnsight's "
                ".source does when it is first asked for there. Do this before the block."
            )


_PLACES: WeakKeyDictionary[nn.Module, _Place] = WeakKeyDictionary()
