"""Where components start: at leading factors of single gradients, chosen to differ, and scaled to sum to the matrix."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.components.parts import Parts, least_square_parts
from param_features.fit.formats import LowRank
from param_features.fit.loop import leading_part
from param_features.gradients import AgainstDrawn, GradientEngine, Gradients, draw_positions
from param_features.problem import Divergence, ModelInputs, Reference

Pairs = tuple[Tensor, Tensor]
"""Unit vectors [pair d_out] and [pair d_in]: of a gradient at a matrix's output, and of what the matrix was applied to."""

_CANDIDATES = 8
"""Gradients for each component to choose from."""

_MOST_SLOTS = 16
_BATCH_POSITIONS = 4096
_TINY = 1e-6
_RIDGE = 0.1


def gradient_starts(
    engine: GradientEngine,
    divergence: Divergence,
    data: ModelInputs,
    n_components: Mapping[str, int],
    generator: torch.Generator,
) -> dict[str, Pairs]:
    """Pairs for the components of each matrix to start from: gradients of samples that differ, common ones first.

    A gradient is that of a sample's divergence from another sample's output, as a fit of gradients has it.
    Cost: a forward and a backward pass for eight gradients a component, of the matrix that has most.

    Args:
        engine: Takes the gradients.
        divergence: What they are of.
        data: Samples are drawn from its rows.
        n_components: How many of each matrix.
        generator: Draws samples, references and pairs.
    """
    found: dict[str, list[Pairs]] = {name: [] for name in n_components}

    def consume(_: int, gradients: Gradients) -> None:
        for name, factors in leading_part(LowRank, gradients, {}, 1).factors.items():
            found[name].append(_units(*factors))

    n_slots = min(_MOST_SLOTS, data.n_pos) if engine.per_position else 1
    n_rows = min(len(data), -(-_CANDIDATES * max(n_components.values()) // n_slots))
    rows = torch.randperm(len(data), generator=generator)[:n_rows]
    cotangents = AgainstDrawn(divergence, Reference("sample", None), generator)
    for part in rows.split(max(2, _BATCH_POSITIONS // data.n_pos)):
        batch = engine.located(data.rows(part))
        is_input = torch.zeros(len(batch), 1, dtype=torch.long)
        slots = draw_positions(batch, n_slots, generator) if engine.per_position else is_input
        engine.each_slot(batch, slots, cotangents, consume)
    joined = {name: (torch.cat([u for u, _ in pairs]), torch.cat([v for _, v in pairs])) for name, pairs in found.items()}
    return {name: _chosen(pairs, n_components[name], generator) for name, pairs in joined.items()}


def parts_along(weight: Float[Tensor, "d_out d_in"], pairs: Pairs) -> Parts:
    """Parts along given pairs that sum to W as nearly as the pairs' right vectors allow.

    Each pair is scaled by ridge regression of W on all of them; what is left of W is added by the least change of U.
    Cost: a system of as many equations as pairs, and a singular value decomposition of the right vectors.
    """
    left, right = (side.double() for side in pairs)
    gram = (left @ left.T) * (right @ right.T)
    gram.diagonal().add_(_RIDGE)
    scale = torch.linalg.solve(gram, ((left @ weight.double()) * right).sum(1))
    U = (left * scale[:, None]).to(weight.dtype)
    V = right.to(weight.dtype)
    rest = least_square_parts(weight - U.T @ V, V)
    return Parts(U + rest.U, V)


def _units(left: Float[Tensor, "sample d_out one"], right: Float[Tensor, "sample d_in one"]) -> Pairs:
    """The pairs of gradients that are not zero, at unit norm."""
    norm = left.norm(dim=1) * right.norm(dim=1)
    is_there = norm[:, 0] > _TINY * norm.max()
    return _normalised(left[is_there, :, 0], right[is_there, :, 0])


def _normalised(left: Tensor, right: Tensor) -> Pairs:
    return torch.nn.functional.normalize(left, dim=1), torch.nn.functional.normalize(right, dim=1)


def _chosen(pairs: Pairs, n: int, generator: torch.Generator) -> Pairs:
    """As many pairs as components: drawn by what those before leave unexplained of them, then at random."""
    if not len(pairs[0]):
        left, right = (torch.randn(n, side.shape[1], generator=generator, dtype=torch.float32).to(side) for side in pairs)
        return _normalised(left, right)
    index = _spread_out(pairs, n, generator)
    again = torch.randint(len(pairs[0]), (n - len(index),), generator=generator)
    index = torch.cat([index, again]).to(pairs[0].device)
    return pairs[0][index], pairs[1][index]


def _spread_out(pairs: Pairs, n: int, generator: torch.Generator) -> Int[Tensor, " chosen"]:
    """Up to n pairs, each drawn with a chance proportional to the squared norm that those before leave of it.

    So a common direction is drawn first, and once. Cost: n² products of numbers, and n of vectors, a candidate.

    Source: randomly pivoted Cholesky, Chen et al. (arXiv 2207.06503).
    """
    left, right = (side.detach().double().cpu() for side in pairs)
    rest, chosen = torch.ones(len(left), dtype=torch.double), []
    factor = torch.zeros(len(left), min(n, len(left)), dtype=torch.double)
    for k in range(factor.shape[1]):
        if rest.sum() < _TINY * len(rest):
            break
        place = int(torch.multinomial(rest, 1, generator=generator))
        column = (left @ left[place]) * (right @ right[place]) - factor[:, :k] @ factor[place, :k]
        factor[:, k] = column / column[place].clamp(min=_TINY).sqrt()
        rest = (rest - factor[:, k].square()).clamp(min=0)
        chosen.append(place)
    return torch.tensor(chosen, dtype=torch.long)
