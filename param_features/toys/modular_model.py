"""The modular-addition transformer computed from its weights alone, and the loop that trains it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from param_features.toys.cache import Weights

TRAINED = (
    "embed.W_E",
    "pos_embed.W_pos",
    *(f"blocks.0.attn.W_{part}" for part in "QKVO"),
    "blocks.0.mlp.W_in",
    "blocks.0.mlp.W_out",
    "unembed.W_U",
)
"""Every parameter but the biases, which stay 0."""

_LR, _WEIGHT_DECAY, _BETAS, _WARM_UP = 2e-3, 2.0, (0.9, 0.98), 10


@dataclass(frozen=True)
class Course:
    """How long to train, and what to hold at 0.

    Attributes:
        n_steps: Training steps at most.
        every: Steps between checkpoints.
        masks: By parameter, False where an entry is held at 0.
        until: Test accuracy of the checkpoint at which training stops.
    """

    n_steps: int
    every: int
    masks: Mapping[str, Tensor]
    until: float | None = None


def modular_logits(weights: Mapping[str, Tensor], pairs: Int[Tensor, "row three"]) -> Float[Tensor, "row p"]:
    """The logits after "=" of a model without biases.

    Keys and values are computed for the p residues, not for the rows, and the MLP at "=" alone: about three times as fast
    as the model itself.

    Args:
        weights: By HookedTransformer's names.
        pairs: Rows [a, b, =].
    """
    embedded, places = weights["embed.W_E"], weights["pos_embed.W_pos"]
    equals = embedded[-1] + places[2]
    tables = (embedded[:-1] + places[0], embedded[:-1] + places[1], equals[None])
    rows = (pairs[:, 0], pairs[:, 1], torch.zeros_like(pairs[:, 2]))
    W_Q, W_K, W_V, W_O = (weights[f"blocks.0.attn.W_{part}"] for part in "QKVO")
    query = einsum(equals, W_Q, "m, head m k -> head k") / W_Q.shape[2] ** 0.5
    scorer = einsum(W_K, query, "head m k, head k -> m head")
    pattern = torch.stack([(table @ scorer)[row] for table, row in zip(tables, rows, strict=True)]).softmax(0)
    moved = einsum(W_V, W_O, "head m k, head k n -> head m n")
    residual = equals.expand(len(pairs), -1)
    for weight, table, row in zip(pattern, tables, rows, strict=True):
        values = einsum(table, moved, "token m, head m n -> token head n")[row]
        residual = residual + einsum(weight, values, "row head, row head n -> row n")
    hidden = (residual @ weights["blocks.0.mlp.W_in"]).relu()
    return (residual + hidden @ weights["blocks.0.mlp.W_out"]) @ weights["unembed.W_U"]


def sums(pairs: Int[Tensor, "row three"]) -> Int[Tensor, " row"]:
    """The right answers, a + b mod p: "=" is token p."""
    return (pairs[:, 0] + pairs[:, 1]) % pairs[:, 2]


@torch.no_grad()
def measured(weights: Mapping[str, Tensor], pairs: Int[Tensor, "row three"]) -> tuple[float, float]:
    """Mean cross-entropy in nats, and share of right answers."""
    logits, answers = modular_logits(weights, pairs), sums(pairs)
    return float(cross_entropy(logits, answers)), float((logits.argmax(1) == answers).double().mean())


@torch.enable_grad()
def trained(
    start: Mapping[str, Tensor], train: Int[Tensor, "n_train three"], test: Int[Tensor, "n_test three"], course: Course
) -> dict[int, Weights]:
    """Checkpoints by step, the start and the last step among them, from full batches and AdamW.

    Entries under a mask are 0 in every checkpoint: they start there, get no gradient, and decay keeps them.
    """
    weights = {name: weight.clone().requires_grad_() for name, weight in masked(start, course.masks).items()}
    optimizer = torch.optim.AdamW(list(weights.values()), lr=_LR, betas=_BETAS, weight_decay=_WEIGHT_DECAY)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM_UP))
    answers, checkpoints = sums(train), {}
    for step in range(course.n_steps + 1):
        if step % course.every == 0 or step == course.n_steps:
            checkpoints[step] = {name: weight.detach().clone() for name, weight in weights.items()}
            if course.until is not None and measured(checkpoints[step], test)[1] >= course.until:
                break
        loss = cross_entropy(modular_logits(masked(weights, course.masks), train).double(), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        warm_up.step()
    return checkpoints


def masked(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Weights:
    """The trained parameters, 0 where a mask is False."""
    return {name: weights[name] * masks[name] if name in masks else weights[name] for name in TRAINED}
