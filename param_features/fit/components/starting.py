"""Where components start: at leading factors of single gradients, chosen to differ, and scaled to sum to the matrix."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.components.parts import Parts, least_square_parts
from param_features.fit.formats import LowRank
from param_features.fit.loop import leading_part
from param_features.gradients import (
    AgainstDrawn,
    Factored,
    GradientEngine,
    Gradients,
    draw_positions,
    leading_of_factored,
)
from param_features.problem import Divergence, ModelInputs, Reference

Pairs = tuple[Tensor, Tensor]
"""Unit vectors [pair d_out] and [pair d_in]: of a gradient at a matrix's output, and of what the matrix was applied to."""

_CANDIDATES = 16
"""Gradients for each component to choose from."""

_MOST_SLOTS = 16
_BATCH_POSITIONS = 4096
_TINY = 1e-6
_RIDGE = 1e-3
_EXACT, _EXPLAINED = 0.1, 0.3
"""Pairs are taken where they leave less than the second of ‖W‖; the fewest that leave less than the first, if any do."""

_LEAST_SQUARE = 1e-3
_MOST_OVERLAPS = 2048
"""Candidates whose overlaps with each other are held."""


def gradient_starts(
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    weights: Mapping[str, Float[Tensor, "d_out d_in"]],
    n_components: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, Pairs]:
    """Pairs for the components of each matrix to start from: gradients of samples that differ, common ones first.

    A gradient is that of a sample's divergence from another sample's output, as a fit of gradients has it. Of a matrix that
    is not square the longer side of a pair is the gradient's, and the other what the matrix makes of it.
    Cost: a forward and a backward pass for sixteen gradients a component, of the matrix that has most.

    Args:
        engine: Takes the gradients.
        divergence: What they are of.
        data: Samples are drawn from its rows.
        weights: The matrices.
        n_components: How many of each matrix.
        generator: Draws samples, references and pairs.
    """
    if len(data) < 2:
        return {}
    found: dict[str, list[Pairs]] = {name: [] for name in n_components}

    def consume(_: int, gradients: Gradients) -> None:
        for name, factors in leading_part(LowRank, gradients, {}, 1).factors.items():
            found[name].append(_units(*factors))

    n_slots = min(_MOST_SLOTS, data.n_pos) if engine.per_position else 1
    n_rows = min(len(data), max(2, -(-_CANDIDATES * max(n_components.values()) // n_slots)))
    rows = torch.randperm(len(data), generator=generator)[:n_rows]
    cotangents = AgainstDrawn(divergence, Reference("sample", None), generator)
    n_batches = max(1, len(rows) // max(2, _BATCH_POSITIONS // data.n_pos))
    for part in rows.tensor_split(n_batches):  # near-equal: a batch of one has no other sample to compare with
        batch = engine.located(data.rows(part))
        is_input = torch.zeros(len(batch), 1, dtype=torch.long)
        slots = draw_positions(batch, n_slots, generator) if engine.per_position else is_input
        engine.each_slot(batch, slots, cotangents, consume)
    joined = {name: (torch.cat([u for u, _ in pairs]), torch.cat([v for _, v in pairs])) for name, pairs in found.items()}
    pairs = {name: _through(weights[name], each) for name, each in joined.items()}
    return {name: _chosen(each, n_components[name], generator) for name, each in pairs.items()}


def parts_along(weight: Float[Tensor, "d_out d_in"], pairs: Pairs, *, is_whole: bool = True) -> Parts | None:
    """Parts along given pairs that sum to W; None where the pairs do not make it up, as those of large models do not.

    The fewest first pairs that leave less than a tenth of W are scaled to sum to it, what they leave is added by the least
    change of their U, and the other parts write nothing.
    Cost: a few systems of as many equations as pairs, and a singular value decomposition of the right vectors.

    Args:
        weight: W.
        pairs: Of unit norm, the most important first.
        is_whole: Whether the parts are to sum to W; otherwise each has what W has of it, and the rest is left.
    """
    left, right = (side.to(weight) for side in pairs)
    if not is_whole:
        return Parts(_shares(weight, left, right).unsqueeze(1) * left, right)
    scale = _scales(weight, left, right)
    if scale is None:
        return None
    n_used, U = len(scale), torch.zeros_like(left)
    U[:n_used] = scale.unsqueeze(1) * left[:n_used]
    U[:n_used] += least_square_parts(weight - U.T @ right, right[:n_used]).U
    return Parts(U, right)


def parts_near(weight: Float[Tensor, "d_out d_in"], pairs: Pairs) -> Parts:
    """Parts along pairs where these make W up; elsewhere parts that read the tight frame nearest to their right vectors.

    U are then least squares. Along many alike directions they would be huge and cancel each other, and start with twenty
    times the divergence under masks that random directions have.
    """
    return parts_along(weight, pairs) or least_square_parts(weight, tight_frame(pairs[1].to(weight)))


def pairs_of(directions: LowRank, n_components: Mapping[str, int], generator: torch.Generator) -> dict[str, Pairs]:
    """Pairs for the components of each matrix to start from: the leading factors of given directions, the first ones first.

    Where there are too few, further ones are drawn at random.

    Args:
        directions: Such as those of features of the same matrices.
        n_components: How many pairs of each matrix.
        generator: Draws what is missing.
    """
    found = {}
    for name, n in n_components.items():
        left, right = _units(*leading_of_factored(Factored(*(side.mT for side in directions.factors[name])), 1))
        drawn = [torch.randn(max(0, n - len(left)), side.shape[1], generator=generator).to(side) for side in (left, right)]
        found[name] = _normalised(*(torch.cat([side[:n], more]) for side, more in zip((left, right), drawn, strict=True)))
    return found


def _shares(
    weight: Float[Tensor, "d_out d_in"], left: Float[Tensor, "pair d_out"], right: Float[Tensor, "pair d_in"]
) -> Float[Tensor, " pair"]:
    """How much W has of each of some unit pairs, together."""
    left, right, W = left.double(), right.double(), weight.double()
    gram = (left @ left.T) * (right @ right.T)
    gram.diagonal().add_(_RIDGE)
    return torch.linalg.solve(gram, ((left @ W) * right).sum(1)).to(weight)


def _scales(
    weight: Float[Tensor, "d_out d_in"], left: Float[Tensor, "pair d_out"], right: Float[Tensor, "pair d_in"]
) -> Float[Tensor, " used"] | None:
    """How much W has of each of the fewest first unit pairs that sum to it; None where all of them do not."""

    def first(k: int) -> tuple[Tensor, float]:
        scale = _shares(weight, left[:k], right[:k])
        return scale, float((weight - (scale.unsqueeze(1) * left[:k]).T @ right[:k]).norm() / weight.norm())

    scale, rest = first(len(left))
    if not rest < _EXPLAINED:
        return None
    low, high = 0, len(left)
    while rest < _EXACT and high - low > 1:
        middle = (low + high) // 2
        fewer, left_over = first(middle)
        if left_over < _EXACT:
            high, scale = middle, fewer
        else:
            low = middle
    return scale


def _units(left: Float[Tensor, "sample d_out one"], right: Float[Tensor, "sample d_in one"]) -> Pairs:
    """The pairs of gradients that are not zero, at unit norm."""
    norm = left.norm(dim=1) * right.norm(dim=1)
    is_there = norm[:, 0] > _TINY * norm.max()
    return _normalised(left[is_there, :, 0], right[is_there, :, 0])


def _through(weight: Float[Tensor, "d_out d_in"], pairs: Pairs) -> Pairs:
    """Pairs with the shorter side replaced by what W makes of the longer: a part of W, as a gradient need not be."""
    (left, right), (d_out, d_in) = pairs, weight.shape
    if d_in > d_out:
        left = right @ weight.T.to(right)
    elif d_out > d_in:
        right = left @ weight.to(left)
    return _normalised(left, right)


def _normalised(left: Tensor, right: Tensor) -> Pairs:
    return torch.nn.functional.normalize(left, dim=1), torch.nn.functional.normalize(right, dim=1)


def _chosen(pairs: Pairs, n: int, generator: torch.Generator) -> Pairs:
    """As many pairs as components: those that together are nearest to all, then some again."""
    if not len(pairs[0]):
        left, right = (torch.randn(n, side.shape[1], generator=generator, dtype=torch.float32).to(side) for side in pairs)
        return _normalised(left, right)
    index = _spread_out(pairs, n)
    again = torch.randint(len(pairs[0]), (n - len(index),), generator=generator)
    index = torch.cat([index, again]).to(pairs[0].device)
    return pairs[0][index], pairs[1][index]


def _spread_out(pairs: Pairs, n: int) -> Int[Tensor, " chosen"]:
    """Up to n pairs: each raises most the sum, over all pairs, of the largest squared overlap with a chosen one.

    So a common direction comes first, and once. Cost: as many numbers as pairs of candidates, of which 2,048 are looked at.
    """
    left, right = (side.detach()[:_MOST_OVERLAPS].float() for side in pairs)
    squares = ((left @ left.T) * (right @ right.T)).square()
    best, chosen = squares.new_zeros(len(squares)), []
    for _ in range(min(n, len(squares))):
        gains = (squares - best.unsqueeze(1)).clamp(min=0).sum(0)
        if float(gains.max()) < _TINY * len(squares):
            break
        chosen.append(int(gains.argmax()))
        best = torch.maximum(best, squares[:, chosen[-1]])
    return torch.tensor(chosen, dtype=torch.long)


def tight_frame(V: Float[Tensor, "component d_in"]) -> Float[Tensor, "component d_in"]:
    """Unit vectors moved as little as makes them nearly a tight frame, VᵀV = 1 · n / d_in; orthogonal where they are few.

    Directions in which V has less than a thousandth of the largest square stay weak. Source: Löwdin's orthogonalisation.
    """
    values, vectors = torch.linalg.eigh(V.double().T @ V.double())
    root = values.clamp(min=_LEAST_SQUARE * values.max()).rsqrt()
    return torch.nn.functional.normalize((V.double() @ (vectors * root) @ vectors.T).to(V.dtype), dim=1)


def random_directions(n: int, d_in: int, generator: torch.Generator) -> Float[Tensor, "component d_in"]:
    """Unit vectors drawn at random, as a tight frame: as many as d_in would else be nearly dependent."""
    return tight_frame(torch.randn(n, d_in, generator=generator, dtype=torch.float32))
