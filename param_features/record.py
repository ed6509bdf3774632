"""Parts of saved files: the records of parameters, and the arguments of a model's call as named tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from param_features.files.checked_json import shown
from param_features.files.disk import Origin
from param_features.files.schema import MOST_COUNT, Part
from param_features.inputs import ModelInputs
from param_features.params import Modes, ParamView, is_fold, modes_of

_MOST_PLACES = 10_000


@dataclass(frozen=True)
class ParamRecord:
    """A decomposed parameter as saved: enough to read directions without the model.

    Attributes:
        shape: Shape of the tensor.
        fold: einops pattern from the tensor to [d_out, d_in].
        fingerprint: SHA-256 of its dtype and matrix [d_out, d_in].
        n_places: How many modules hold it: 2 where an embedding is tied with the unembedding.
    """

    shape: tuple[int, ...]
    fold: str
    fingerprint: str
    n_places: int = 1

    @classmethod
    def of(cls, view: ParamView, fingerprint: str) -> "ParamRecord":
        """The record of a model's parameter."""
        return cls(tuple(view.shape), view.fold, fingerprint, len(view.places))

    @classmethod
    def read(cls, part: Part) -> "ParamRecord":
        """From a file.

        Raises:
            StoreError: It says anything else than a record does, or what no parameter can be.
        """
        part.check_fields(("shape", "fold", "fingerprint", "n_places"))
        shape, fold = part.counts("shape", least=1), part.text("fold")
        if math.prod(shape) > MOST_COUNT:
            part.refuse("shape", f"lengths whose product is at most {MOST_COUNT}")
        if not is_fold(fold, len(shape)):
            part.refuse("fold", f"a pattern from the {len(shape)} axes of shape to two, such as 'head i o -> (head o) i'")
        return cls(shape, fold, part.sha256("fingerprint"), part.count("n_places", least=1, most=_MOST_PLACES))

    @property
    def modes(self) -> Modes:
        """The axes of the tensor that make up d_out and d_in."""
        return modes_of(self.fold, self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        out, into = self.modes
        return math.prod(out), math.prod(into)


def input_tensors(inputs: ModelInputs, title: str) -> dict[str, Tensor]:
    """The arguments that are tensors, by names that begin with `title`."""
    named = {f"args/{place}": value for place, value in enumerate(inputs.args)}
    named |= {f"kwargs/{key}": value for key, value in inputs.kwargs.items()} | {"mask": inputs.mask}
    return {f"{title}/{name}": value for name, value in named.items() if isinstance(value, Tensor)}


def inputs_from(tensors: Mapping[str, Tensor], title: str, origin: Origin) -> ModelInputs | None:
    """What `input_tensors` named; None where there is nothing of that title.

    Raises:
        StoreError: They cannot be the arguments of one call: their names, their number of rows or their mask.
    """
    found = {name.removeprefix(f"{title}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{title}/")}
    mask = found.pop("mask", None)
    kwargs = {name.removeprefix("kwargs/"): tensor for name, tensor in found.items() if name.startswith("kwargs/")}
    n_args = len(found) - len(kwargs)
    args = [found.get(f"args/{place}") for place in range(n_args)]
    unknown = found.keys() - {f"args/{place}" for place in range(n_args)} - {f"kwargs/{name}" for name in kwargs}
    if unknown:
        origin.refuse(f"holds {title}/{shown(min(unknown))}; accepted: args/0 and on without gaps, kwargs/<name> and mask")
    if mask is None and not args and not kwargs:
        return None
    inputs = ModelInputs(tuple(args), kwargs)
    problem = _problem(inputs) or _mask_problem(mask, inputs.tokens)
    if problem:
        origin.refuse(f"holds {title} of which {problem}")
    return replace(inputs, mask=mask)


def _problem(inputs: ModelInputs) -> str:
    """Why tensors cannot be the arguments of one call; empty where they can."""
    sizes = {tuple(tensor.shape[:1]) for tensor in inputs.tensors}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        return "the tensors do not have the same rows, at least one, on their first axis"
    if any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for tensor in inputs.tensors):
        return "some numbers are NaN or infinite"
    return ""


def _mask_problem(mask: Tensor | None, tokens: Tensor | None) -> str:
    """Why a mask cannot be that of the tokens; empty where it can."""
    if mask is None:
        return ""
    if mask.dtype != torch.bool or tokens is None or mask.shape != tokens.shape:
        return "the mask is not true or false for each token"
    n_runs = mask[:, :1].long().sum(1) + (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    return "" if bool((n_runs == 1).all()) else "a row's real positions are not one run"
