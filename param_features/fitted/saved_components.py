"""Components and their importance network, in files."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from param_features.files import COMPONENTS as FORMAT
from param_features.files import Origin, Part, shown
from param_features.fit.components import NETWORKS, ComponentDictionary, ImportanceNet, Parts, network_shaped
from param_features.fitted.saved_kind import SavedKind
from param_features.params import ParamRecord

_MOST_HIDDEN = 2**20


def _tensors(dictionary: ComponentDictionary) -> dict[str, Tensor]:
    sides = {f"u/{name}": parts.U for name, parts in dictionary.parts.items()}
    sides |= {f"v/{name}": parts.V for name, parts in dictionary.parts.items()}
    return sides | {f"importance/{name}": tensor for name, tensor in dictionary.net.state_dict().items()}


def _record(dictionary: ComponentDictionary) -> dict[str, Any]:
    return {"importance": {"kind": dictionary.net.kind, "hidden": dictionary.net.hidden}}


def _read(
    tensors: Mapping[str, Tensor], whole: Part, params: Mapping[str, ParamRecord], origin: Origin
) -> tuple[ComponentDictionary, Collection[str]]:
    parts = {name: _parts(tensors, name, record, origin) for name, record in params.items()}
    like = next(iter(parts.values())).U
    net = _network(tensors, whole.part("importance"), parts, like.dtype, origin)
    known = {f"{side}/{name}" for side in "uv" for name in params} | {f"importance/{name}" for name in net.state_dict()}
    return ComponentDictionary(parts, net), known


def _parts(tensors: Mapping[str, Tensor], name: str, record: ParamRecord, origin: Origin) -> Parts:
    """U and V of one matrix, of the shapes that its record says.

    Raises:
        StoreError: One is missing, or of another shape or dtype.
    """
    U, V = (_floats(tensors, f"{side}/{name}", origin) for side in "uv")
    shapes = [tuple(U.shape), tuple(V.shape)]
    d_out, d_in = record.matrix_shape
    if U.dim() != 2 or len(U) < 1 or shapes != [(len(U), d_out), (len(U), d_in)] or U.dtype != V.dtype:
        origin.refuse(
            f"holds u/{shown(name)} and v/{shown(name)} of shapes {shapes[0]} and {shapes[1]}; accepted: [component, "
            f"{d_out}] and [component, {d_in}] of one dtype, with at least one component"
        )
    return Parts(U, V)


def _network(
    tensors: Mapping[str, Tensor], part: Part, parts: Mapping[str, Parts], dtype: torch.dtype, origin: Origin
) -> ImportanceNet:
    """The network of the kind and width that the record says, with the numbers of the file.

    Raises:
        StoreError: The record names none, or a tensor is missing, or of another shape or dtype.
    """
    part.check_fields(("kind", "hidden"))
    kind, hidden = part.choice("kind", tuple(NETWORKS)), part.count("hidden", least=1, most=_MOST_HIDDEN)
    net = network_shaped(kind, {name: (each.n, each.V.shape[1]) for name, each in parts.items()}, hidden)
    state = {}
    for name, like in net.state_dict().items():
        tensor = _floats(tensors, f"importance/{name}", origin)
        if tensor.shape != like.shape or tensor.dtype != dtype:
            origin.refuse(
                f"holds importance/{shown(name)}, {tensor.dtype} of shape {tuple(tensor.shape)}; accepted: {dtype} of shape "
                f"{tuple(like.shape)}"
            )
        state[name] = tensor
    net.load_state_dict(state, assign=True)
    return net.requires_grad_(False)


def _floats(tensors: Mapping[str, Tensor], name: str, origin: Origin) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        origin.refuse(f"lacks the tensor {shown(name)}")
    if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
        origin.refuse(f"holds {shown(name)}, {tensor.dtype} of shape {tuple(tensor.shape)}; accepted: finite floats")
    return tensor


COMPONENTS = SavedKind(FORMAT, ("importance",), (), (), _tensors, _record, _read)
"""Components that sum to the weights."""
