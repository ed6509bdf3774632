"""Stacks of experts: a layer of a mixture that holds the matrices of all its experts in one tensor, [expert, out, in].

One expert is addressed as `experts.gate_up_proj[3]`. Known by what the layer has, so that no library is imported.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from param_features.params import Layout, Member, ParamView, Site, Tap, default_fold

_COUNTS = ("num_experts", "n_experts", "num_local_experts")
_INTERFACE = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "down_proj")
"""What every layer has that transformers runs by its interface of experts: (states, chosen experts, their weights)."""


def expert_views(view: ParamView) -> Iterator[ParamView]:
    """Each expert's matrix or bias in a stack, by `"<name>[<number>]"`; none where the parameter is no stack."""
    if not _is_stack(view):
        return
    n_experts, size, *_ = view.stored.shape
    is_bias = view.stored.dim() == 2
    pattern = "expert row -> (expert row)" if is_bias else "expert row column -> (expert row) column"
    fold = "i o -> o i" if _is_transposed(view.owner) and not is_bias else default_fold(view.stored.dim() - 1)
    for number in range(n_experts):
        layout = Layout(pattern, (("expert", n_experts),), (number * size, (number + 1) * size))
        yield ParamView(f"{view.name}[{number}]", view.owner, view.attribute, fold, view.also_at, layout)


def expert_taps(view: ParamView) -> tuple[Tap, ...]:
    """The call of a layer that transformers runs by its interface; none for other stacks, which take the dense route."""
    if view.layout.part is None or not all(hasattr(view.owner, name) for name in _INTERFACE) or view.also_at:
        return ()
    start, stop = view.layout.part
    member = Member(view.owner, view.attribute, start // (stop - start))
    return (Tap("experts", member, view.attribute, Site(view.owner, "call"), Site(view.owner)),)


def _is_stack(view: ParamView) -> bool:
    """Whether a parameter's first axis counts experts: its layer holds three-axis tensors with an expert in each row."""
    n_experts = _n_experts(view)
    stored = view.stored.dim() in (2, 3) and view.stored.shape[0] == n_experts
    tensors = [parameter for parameter in view.owner._parameters.values() if parameter is not None]
    return stored and any(tensor.dim() == 3 and tensor.shape[0] == n_experts for tensor in tensors)


def _n_experts(view: ParamView) -> int | None:
    """How many experts a layer says that it has, or its name means."""
    for name in _COUNTS:
        count: Any = getattr(view.owner, name, None)
        if isinstance(count, int):
            return count
    is_named = "expert" in view.name.lower() or "expert" in type(view.owner).__name__.lower()
    return view.stored.shape[0] if is_named and view.stored.dim() == 3 else None


def _is_transposed(owner: nn.Module) -> bool:
    """Whether the matrices are stored [in, out], as transformers says of a layer."""
    return bool(getattr(owner, "is_transposed", False))
