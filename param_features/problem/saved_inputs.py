"""The arguments of a model's call as named tensors, as files hold them."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from param_features.files import Origin, shown
from param_features.problem.arguments import ModelInputs, count_runs


def input_tensors(inputs: ModelInputs, title: str) -> dict[str, Tensor]:
    """Name the arguments that are tensors, by names that begin with `title`."""
    named = {f"args/{place}": value for place, value in enumerate(inputs.args)}
    named |= {f"kwargs/{key}": value for key, value in inputs.kwargs.items()} | {"mask": inputs.mask}
    return {f"{title}/{name}": value for name, value in named.items() if isinstance(value, Tensor)}


def inputs_from(tensors: Mapping[str, Tensor], title: str, origin: Origin) -> ModelInputs | None:
    """Put together the arguments that `input_tensors` named; None where nothing has that title.

    Raises:
        StoreError: They cannot be the arguments of one call: their names, their number of rows or their mask.
    """
    named = {name.removeprefix(f"{title}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{title}/")}
    mask = named.pop("mask", None)
    kwargs = {name.removeprefix("kwargs/"): tensor for name, tensor in named.items() if name.startswith("kwargs/")}
    n_args = len(named) - len(kwargs)
    args = [named.get(f"args/{place}") for place in range(n_args)]
    unknown = named.keys() - {f"args/{place}" for place in range(n_args)} - {f"kwargs/{name}" for name in kwargs}
    if unknown:
        origin.refuse(f"holds {title}/{shown(min(unknown))}; accepted: args/0 and on without gaps, kwargs/<name> and mask")
    if mask is None and not args and not kwargs:
        return None
    inputs = ModelInputs(tuple(args), kwargs)
    fault = _argument_fault(inputs) or _mask_fault(mask, inputs.tokens)
    if fault:
        origin.refuse(f"holds {title} of which {fault}")
    return replace(inputs, mask=mask)


def _argument_fault(inputs: ModelInputs) -> str:
    """Why tensors cannot be the arguments of one call; empty where they can."""
    sizes = {tuple(tensor.shape[:1]) for tensor in inputs.tensors}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        return "the tensors do not have the same rows, at least one, on their first axis"
    if any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for tensor in inputs.tensors):
        return "some numbers are NaN or infinite"
    return ""


def _mask_fault(mask: Tensor | None, tokens: Tensor | None) -> str:
    """Why a mask cannot be that of the tokens; empty where it can."""
    if mask is None:
        return ""
    if mask.dtype != torch.bool or tokens is None or mask.shape != tokens.shape:
        return "the mask is not true or false for each token"
    return "" if bool((count_runs(mask) == 1).all()) else "a row's real positions are not one run"
