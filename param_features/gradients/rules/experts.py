"""Experts of a mixture as transformers runs them: every position goes through the few that its router chose.

`layer(states, chosen, weights)` is Σ_k weights_k · expert_{chosen_k}(state), with expert_e(a) = W_down,e act(W_up,e a).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from param_features.gradients.rules.registry import register_rule
from param_features.gradients.types import Dense, Factored
from param_features.params import Member


@register_rule("experts")
def expert(member: Member, inputs: tuple[Tensor, Tensor, Tensor], delta: Tensor) -> Factored | Dense:
    """∂D/∂W_e = Σ_s δ_s ⊗ a_s over the positions that are sent to expert e, zero at all others.

    What lies between the layer's output and the matrix's own is gone through again, for those positions and this expert.
    Cost: a forward and a backward pass of the expert on them.
    """
    states, chosen, weights = inputs
    n_rows, d_model = len(delta), states.shape[-1]
    is_chosen = (chosen == member.number).flatten(0, -2)
    place = is_chosen.any(-1).nonzero()[:, 0]
    share = (weights.flatten(0, -2) * is_chosen)[place].sum(-1, keepdim=True)
    layer: Any = member.layer
    is_down = member.attribute.startswith("down_proj")
    with torch.enable_grad():
        passed = _passed(layer, member.number, states.reshape(-1, d_model)[place])
        cotangent = share * delta.reshape(-1, delta.shape[-1])[place]
        (outer,) = torch.autograd.grad(passed.output, passed.down if is_down else passed.up, cotangent)
    source = passed.inner if is_down else passed.state

    def spread(values: Tensor) -> Tensor:
        whole = values.new_zeros(len(is_chosen), values.shape[-1])
        return whole.index_copy(0, place, values.detach()).unflatten(0, (n_rows, -1))

    if member.attribute.endswith("_bias"):
        return Dense(spread(outer).sum(1).unsqueeze(-1))
    return Factored(spread(outer), spread(source))


class _Passed(NamedTuple):
    """What one expert makes of some states, with its graph from `up` on.

    Attributes:
        state: The states.
        up: What the first matrix makes of them.
        inner: What the second matrix is applied to.
        down: What it makes of that.
        output: The expert's output.
    """

    state: Tensor
    up: Tensor
    inner: Tensor
    down: Tensor
    output: Tensor


def _passed(layer: Any, number: int, state: Tensor) -> _Passed:
    up = _projected(layer, "gate_up_proj" if layer.has_gate else "up_proj", number, state).requires_grad_()
    inner = layer._apply_gate(up) if layer.has_gate else layer.act_fn(up)
    down = _projected(layer, "down_proj", number, inner)
    return _Passed(state, up, inner, down, layer.post_expert_norm(down) if _has_norm(layer) else down)


def _projected(layer: Any, name: str, number: int, inputs: Tensor) -> Tensor:
    weight, bias = getattr(layer, name)[number].to(inputs), getattr(layer, f"{name}_bias", None)
    weight = weight.T if layer.is_transposed else weight
    return linear(inputs, weight, None if bias is None else bias[number].to(inputs))


def _has_norm(layer: Any) -> bool:
    return getattr(layer, "has_post_expert_norm", False)
