"""What a user's call goes through first: names of arguments, kinds of values, settings as mappings, `~` in paths."""

import collections.abc
import dataclasses
import inspect
import os
import re
import types
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ForwardRef, Literal, TypeVar, Union, cast, get_args, get_origin

import numpy as np
import torch
from torch import Tensor

from param_features.errors import ArgumentError, nearest
from param_features.machine.checked_calls import fits

Public = TypeVar("Public")

_OTHER_WORDS = {
    "epochs": "steps", "n_epochs": "steps", "max_steps": "steps", "learning_rate": "lr", "num_features": "n_features",
    "n_components": "n_features", "n_latents": "n_features", "d_sae": "n_features", "k": "l0", "num_samples": "n_samples",
    "parameters": "params", "param": "params", "names": "params", "data": "tokens", "texts": "tokens", "prompts": "tokens",
    "input_ids": "tokens", "loss": "divergence", "sparsity": "l0", "random_state": "seed", "verbose": "progress",
}  # fmt: skip
"""Words of other libraries for what has another name here."""

_ELSEWHERE = {
    "device": "The library works where the model is: move it before, with model.to(…).",
    "dtype": "The library works in the model's own: convert it before, with model.to(…).",
}
_LONGEST = 80
_WHERE_FROM = {"params": "pf.list_params(model) prints all names."}


def public(called: Public) -> Public:
    """Make a function, method or class ready for what users get wrong; of a class it is `__init__` that is meant.

    An argument that does not exist, one that is missing and a value of another kind than annotated are refused, each by an
    `ArgumentError`; a mapping is taken for settings, and `~` in a path for the user's folder. Numbers and lists
    of NumPy's and torch's become Python's. Cost: some microseconds an argument.
    """
    if isinstance(called, type):
        cast(Any, called).__init__ = _guarded(called.__init__, called.__name__)
        return called
    function = cast(Any, called)
    return cast(Public, _guarded(function, function.__name__))


def _guarded(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ArgumentError(_unbound(name, signature, args, kwargs) or f"{name}(): {error}.") from None
        for key, value in bound.arguments.items():
            bound.arguments[key] = _read(name, signature.parameters[key], value, bound.arguments)
        return function(*bound.args, **bound.kwargs)

    if hasattr(function, "cache_clear"):
        cast(Any, guarded).cache_clear = cast(Any, function).cache_clear
    return guarded


def _unbound(name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Say which argument does not exist, or is missing; empty where there is another reason."""
    known = {key: parameter for key, parameter in signature.parameters.items() if key != "self"}
    for key in kwargs:
        if key not in known:
            return f"{name}() has no argument {key}=. {_where(key, known)}"
    most = sum(parameter.kind != parameter.KEYWORD_ONLY for parameter in known.values())
    is_method = "self" in signature.parameters
    if len(args) - is_method > most:
        n_given = len(args) - is_method
        return f"{name}() takes {most} arguments without a name, and got {n_given}. Give the others as name=value."
    given = {*list(signature.parameters)[: len(args)], *kwargs}
    missing = [key for key, parameter in known.items() if parameter.default is parameter.empty and key not in given]
    if not missing:
        return ""
    hint = next((f" {_WHERE_FROM[key]}" for key in missing if key in _WHERE_FROM), "")
    return f"{name}() needs {' and '.join(f'{key}=' for key in missing)}.{hint}"


def _where(key: str, known: Mapping[str, inspect.Parameter]) -> str:
    """Where an argument that does not exist belongs."""
    if key in _ELSEWHERE:
        return _ELSEWHERE[key]
    for word in (key, _OTHER_WORDS.get(key, "")):
        if word in known:
            return f"It is {word}= here."
        homes = [
            (f"{argument}=", f"{argument}=pf.{kinds[0].__name__}({word}=…)")
            for argument, parameter in known.items()
            if (kinds := [kind for kind in settings_kinds(parameter.annotation) if word in _fields(kind)])
        ]
        if homes:
            arguments, calls = (" or ".join(parts) for parts in zip(*homes, strict=True))
            return f"It belongs to {arguments}: give {calls}."
    inner = [
        field for parameter in known.values() for kind in settings_kinds(parameter.annotation) for field in _fields(kind)
    ]
    return f"Nearest: {nearest(key, [*known, *inner])}. Arguments: {', '.join(known)}."


def at_home(path: Any) -> Any:
    """A path whose leading `~` is the user's folder; of the same type, and anything else as it is."""
    is_path = isinstance(path, str | os.PathLike) and str(path).startswith("~")
    return cast(Any, type(path))(os.path.expanduser(path)) if is_path else path


def _read(name: str, parameter: inspect.Parameter, value: Any, others: Mapping[str, Any]) -> Any:
    """The value as the function takes it.

    Raises:
        ArgumentError: It is of another kind than annotated.
    """
    hint = parameter.annotation
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.name == "self":
        return value
    if isinstance(value, Mapping) and (kinds := settings_kinds(hint)):
        return kinds[0](**value) if len(kinds) == 1 else value
    if isinstance(value, str | os.PathLike) and _takes_path(hint):
        value = at_home(value)
    is_truth = isinstance(value, bool) and {int, float} & {*_alternatives(hint)} and bool not in _alternatives(hint)
    if value is parameter.default or (fits(value, hint) and not is_truth):
        return _in_range(name, parameter.name, value)
    plain = cast(Any, value).tolist() if not is_truth and _is_small(value) else value
    if plain is not value and fits(plain, hint):
        return plain
    swapped = [key for key, other in others.items() if key != parameter.name and other is not None and fits(other, hint)]
    note = f" Are {parameter.name}= and {swapped[0]}= swapped?" if swapped and _is_own(hint) else ""
    if parameter.name in _WHERE_FROM:
        note = f" Was it forgotten? The order is (model, params, tokens); {_WHERE_FROM[parameter.name]}"
    raise ArgumentError(f"{name}() got {parameter.name}={shown(value)}. Accepted: {in_words(hint)}.{note}")


def _in_range(name: str, argument: str, value: Any) -> Any:
    """A value, refused where it is a seed that no generator takes."""
    if argument == "seed" and isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ArgumentError(f"{name}() got seed={value}. Accepted: whole numbers from -2⁶³ to 2⁶³ − 1.")
    return value


def shown(value: Any) -> str:
    """A value in a message: short, and a tensor by its shape."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"an array of shape {value.shape}"
    if value is None or isinstance(value, str | bytes | int | float | complex | list | tuple | dict | set | os.PathLike):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    kind = value if isinstance(value, type) else type(value)
    return f"{'the class' if isinstance(value, type) else 'a'} {kind.__module__}.{kind.__qualname__}"


def settings_kinds(hint: Any) -> list[type]:
    """The classes of settings among what a hint allows."""
    kinds = [kind for kind in _alternatives(hint) if isinstance(kind, type)]
    return [kind for kind in kinds if dataclasses.is_dataclass(kind) and _name(kind).endswith("Settings")]


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cast(Any, kind)) if field.init]


def _takes_path(hint: Any) -> bool:
    return any(isinstance(kind, type) and issubclass(kind, cast(Any, os.PathLike)) for kind in _alternatives(hint))


def _is_small(value: Any) -> bool:
    """Whether it is a number or a list of NumPy's or torch's."""
    return isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim <= 1 and not getattr(value, "is_meta", False)


def _is_own(hint: Any) -> bool:
    return any(str(getattr(kind, "__module__", "")).startswith("param_features") for kind in _alternatives(hint))


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


_WORDS = {
    int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None", bytes: "bytes",
    Tensor: "a tensor", os.PathLike: "a path", re.Pattern: "a compiled regex", torch.dtype: "a torch.dtype", Any: "anything",
}  # fmt: skip


def in_words(hint: Any) -> str:
    """What a hint accepts, in words."""
    return " or ".join(dict.fromkeys(map(_in_words, _alternatives(hint))))


def _in_words(kind: Any) -> str:
    if kind in _WORDS:
        return _WORDS[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(map(repr, inner))
    if origin is not None and isinstance(origin, type):
        if issubclass(origin, Mapping):
            return f"a mapping from {in_words(inner[0])} to {in_words(inner[1])}" if len(inner) == 2 else "a mapping"
        if origin is collections.abc.Callable:
            return "a function"
        return f"a list of {_plural(inner[0])}" if inner else "a list"
    if dataclasses.is_dataclass(kind) and _name(kind).endswith("Settings"):
        return f"pf.{_name(kind)}(…) or a mapping of its settings"
    return {"Fitted": "features of pf.decompose or pf.load"}.get(_name(kind), f"a {_name(kind)}")


def _plural(kind: Any) -> str:
    words = "these" if isinstance(kind, str | ForwardRef) else in_words(kind)
    return f"{words[2:]}s" if words.startswith("a ") else words


def _name(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind))
