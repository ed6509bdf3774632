"""Edited copies of a model, and edits for good."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.errors import AdapterError, ModelStateError
from param_features.params import ParamRecord, ParamSubset, adapter_for, matching_views, overwrite


@dataclass(frozen=True)
class Edit:
    """A change of a model's weights that stays.

    Attributes:
        coefficients: δ by feature.
        sizes: ‖ΔW‖ and ‖W‖ before it, by the model's parameter names.
    """

    coefficients: Mapping[int, float]
    sizes: Mapping[str, tuple[float, float]]

    def __repr__(self) -> str:
        """What was changed, by how much, and what follows."""
        parts = ", ".join(f"{name} by {change:.4g} of {size:.4g}" for name, (change, size) in self.sizes.items())
        return (
            f"Edited for good: {parts} (norms). These are no longer the weights that were decomposed: pf.load, steered and "
            "edit will refuse them."
        )


def located(model: Any, params: Mapping[str, ParamRecord]) -> ParamSubset:
    """The decomposed parameters in a model, in the features' order, by name or else by their weights.

    Raises:
        FingerprintError: The model's parameters are not the ones that were decomposed.
        UnknownParameterError: The model lacks one.
        AdapterError: No adapter recognises the model.
    """
    return ParamSubset(matching_views(adapter_for(model), params))


def copied(model: Any) -> Any:
    """A copy of a model that shares no memory with it.

    Raises:
        AdapterError: The model cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError, ValueError, AttributeError) as error:
        raise AdapterError(
            f"A {type(model).__name__} cannot be copied ({error}). Load the model a second time and use features.edit on it."
        ) from error


@torch.no_grad()
def write_for_good(subset: ParamSubset, deltas: Mapping[str, Float[Tensor, "*shape"]]) -> dict[str, tuple[float, float]]:
    """Add to the parameters in place; returns ‖ΔW‖ and ‖W‖ by name, as stored.

    Raises:
        ModelStateError: The model is being steered, so that the edit would be undone.
    """
    if subset.is_edited:
        raise ModelStateError("The model is being steered, and leaving that block would undo the edit. Edit it outside.")
    sizes = {}
    for view in subset.views:
        before = view.tensor.detach().clone()
        exact = torch.promote_types(before.dtype, torch.float32)
        changed = before.to(exact) + deltas[view.name].to(before.device, exact)
        overwrite(view.stored, view.layout.write(changed.to(before.dtype), view.stored))
        moved = view.tensor.detach().to(exact) - before.to(exact)
        sizes[view.name] = (float(moved.norm()), float(before.to(exact).norm()))
    return sizes
