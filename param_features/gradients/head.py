"""The layer of logits: whether it gives the output, and what its softmax means for the state below without the logits."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from param_features.gradients.graph import AFFINE, PASSED_ON, operations_between
from param_features.params import Adapter, held_still
from param_features.problem import ModelInputs

_EXACT = (torch.float32, torch.float64)


@dataclass(frozen=True)
class LinearHead:
    """Logits W · state + b, with a row of W for every token."""

    weight: Float[Tensor, "d_output d_model"]
    bias: Float[Tensor, " d_output"] | None

    @classmethod
    def of(cls, adapter: Adapter) -> "LinearHead | None":
        """The adapter's head, its rows laid out one after another; None where it is no plain product."""
        weights = adapter.head_weights()
        if weights is None:
            return None
        weight, bias = weights
        return cls(weight.detach().contiguous(), None if bias is None else bias.detach())

    def agrees(self, head: nn.Module) -> bool:
        """Whether the head's own forward is this product, in a precision where differences of its means are exact enough.

        That it is a product with some matrix is read from its graph, and with which one from two random states.
        """
        if self.weight.is_meta or self.weight.dtype not in _EXACT or not bool(torch.isfinite(self.weight).all()):
            return False
        generator = torch.Generator().manual_seed(0)
        states = (
            torch.randn(2, 1, self.weight.shape[1], dtype=torch.float32, generator=generator)
            .to(self.weight)
            .requires_grad_()
        )
        with held_still(head):
            logits = head.forward(states)
        product = torch.nn.functional.linear(states, self.weight, self.bias)
        if logits.shape != product.shape or not operations_between(logits, states) <= AFFINE:
            return False
        return bool((logits - product).norm() <= 1e-4 * product.norm())

    @torch.no_grad()
    def expected_row(self, states: Float[Tensor, "sample d_model"]) -> Float[Tensor, "sample d_model"]:
        """Σ_v softmax(logits)_v · W_v of each sample: softmax(logits) taken back through the head.

        This is attention with the tokens as keys and as values, so the kernel of attention computes it block by block; no
        more than a block of logits exists at a time. Cost: two products with W.
        """
        table = self.weight[None, None]
        mask = None if self.bias is None else self.bias.to(states).expand(len(states), -1)
        return scaled_dot_product_attention(states[None, None], table, table, attn_mask=mask, scale=1.0)[0, 0]

    @torch.no_grad()
    def pulled(self, cotangents: Float[Tensor, "sample d_output"]) -> Float[Tensor, "sample d_model"]:
        """Cotangents at the logits taken back to the states."""
        return cotangents.to(self.weight) @ self.weight


def gives_output(adapter: Adapter, inputs: ModelInputs) -> bool:
    """Whether the model's output is what its head makes, as it is: in one call, with nothing computed from it afterwards.

    Read from the graph above the head. Cost: a forward pass of the inputs.
    """
    head, made = adapter.head(), []

    def note(module: nn.Module, args: tuple, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return output
        made.append(output.detach().requires_grad_())
        return made[-1].clone()

    if head is None:
        return False
    with held_still(adapter.module):
        handle = head.register_forward_hook(note, prepend=True)
        try:
            output = adapter.run(*inputs.args, **inputs.kwargs)
        finally:
            handle.remove()
        is_whole = len(made) == 1 and output.shape == made[0].shape and output.requires_grad
        return is_whole and operations_between(output, made[0]) <= PASSED_ON
