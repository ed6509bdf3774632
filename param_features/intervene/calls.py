"""Whether a layer's weight is used by calling the layer and in no other way, which is all that an adapter reaches."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from param_features.errors import ExportError
from param_features.gradients import GradientEngine
from param_features.intervene.layers import Layer
from param_features.intervene.stacks import Stack
from param_features.params import held_still
from param_features.problem import ModelInputs

TWO_ROWS = ModelInputs((torch.zeros(2, 2, dtype=torch.long),), {})
"""The model is run on these rows where no examples are at hand."""


def refuse_other_uses(engine: GradientEngine, layers: Sequence[Layer | Stack], inputs: ModelInputs) -> None:
    """Refuse layers whose moved weights would do something else in the model than in calls of the layers alone.

    `nn.MultiheadAttention` reads the weight of its `out_proj` without calling it: an adapter there would do nothing.
    Cost: three forward passes of two rows, and one more for each layer where they differ.

    Raises:
        ExportError: Names the layer.
    """
    device = engine.subset.device
    rows = inputs.rows(slice(0, 2)).map(lambda tensor: tensor.to(device))
    if _agree(engine, layers, rows):
        return
    wrong = next((layer for layer in layers if not _agree(engine, [layer], rows)), layers[0])
    raise ExportError(
        f"The model uses {wrong.name!r} in other ways than by calling this {type(wrong.owner).__name__}, as "
        "nn.MultiheadAttention does with its out_proj, and an adapter acts on the call alone. Use features.edit(model, …)."
    )


def _agree(engine: GradientEngine, layers: Sequence[Layer | Stack], rows: ModelInputs) -> bool:
    adapter = engine.adapter
    changes: dict[nn.Module, dict[str, Tensor]] = {}
    for layer in layers:
        changes.setdefault(layer.owner, {}).update(layer.changes())
    with held_still(adapter.module), torch.no_grad():
        before = adapter.run(*rows.args, **rows.kwargs)
        with ExitStack() as stack:
            for owner, of_owner in changes.items():
                stack.enter_context(_moved(owner, of_owner))
            everywhere = adapter.run(*rows.args, **rows.kwargs)
        with ExitStack() as stack:
            for owner, of_owner in changes.items():
                stack.enter_context(_moved_in_calls(owner, of_owner))
            in_calls = adapter.run(*rows.args, **rows.kwargs)
    rounding = 256 * torch.finfo(before.dtype).eps * before.norm()
    return bool((everywhere - in_calls).norm() <= 0.01 * (everywhere - before).norm() + rounding)


@contextmanager
def _moved(owner: nn.Module, changes: dict[str, Tensor]) -> Iterator[None]:
    """The layer with other tensors; its own Parameters are put back on exit."""
    saved = {key: owner._parameters[key] for key in changes}
    try:
        for key, change in changes.items():
            weight = owner.get_parameter(key)
            owner._parameters[key] = nn.Parameter(weight + change.to(weight.dtype), requires_grad=False)
        yield
    finally:
        owner._parameters.update(saved)


@contextmanager
def _moved_in_calls(owner: nn.Module, changes: dict[str, Tensor]) -> Iterator[None]:
    """The layer with other tensors while it is called, and at no other time."""

    def rerun(module: nn.Module, args: tuple, kwargs: dict[str, Any], _: Any) -> Any:
        with _moved(module, changes):
            return module.forward(*args, **kwargs)

    handle = owner.register_forward_hook(rerun, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
