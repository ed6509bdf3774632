"""The layer of logits as one product: what its softmax means for the state below it, without the logits themselves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from param_features.params import Adapter

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

    @torch.no_grad()
    def agrees(self, head: torch.nn.Module) -> bool:
        """Whether the head's own forward is this product, in a precision where differences of its means are exact enough."""
        if self.weight.is_meta or self.weight.dtype not in _EXACT or not bool(torch.isfinite(self.weight).all()):
            return False
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(2, 1, self.weight.shape[1], generator=generator).to(self.weight)
        product, logits = torch.nn.functional.linear(states, self.weight, self.bias), head.forward(states)
        return logits.shape == product.shape and bool((logits - product).norm() <= 1e-4 * product.norm())

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
