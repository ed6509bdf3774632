"""Components that start from what a matrix is applied to: directions along which its inputs act independently."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from param_features.fit.components.importance import Starting
from param_features.fit.components.parts import Parts
from param_features.fit.components.passes import MaskedModel
from param_features.problem import ModelInputs

SHARE = 0.95
"""Of the outputs' variance: the leading directions that hold it are turned until they are independent."""

_DAMPING = 1e-6
_ROUNDS = 100
_SETTLED = 1e-4

_SEEN = 2**14
_WRITES = 1e-6
"""Below this share of the largest, what a component writes is nothing."""

Positions = Float[Tensor, "position d_in"] | Int[Tensor, " position"]


def seen_positions(model: MaskedModel, data: ModelInputs, n_rows: int, generator: torch.Generator) -> dict[str, Positions]:
    """What each matrix is applied to at up to 16,384 positions that are no padding. Cost: a forward pass of their rows."""
    found: dict[str, list[Tensor]] = {site.name: [] for site in model.sites}
    rows = torch.randperm(len(data), generator=generator)[: -(-_SEEN // data.n_pos)]
    for part in rows.split(n_rows):
        clean = model.clean(data.rows(part))
        n_wanted = -(-_SEEN * len(part) // len(rows))
        for name, applied in clean.applied.items():
            real = clean.real[name]
            each = applied.flatten(0, 1) if real is None else applied[real]
            found[name].append(each[:: max(1, len(each) // n_wanted)])
    return {name: torch.cat(each)[:_SEEN] for name, each in found.items()}


def starting_of(parts: Parts, seen: Positions) -> Starting:
    """Importances begin at 1 where a component adds more to the outputs than the root mean square of all, else below it."""
    norms = parts.U.norm(dim=1)
    writes = norms > _WRITES * norms.max()
    usual = (parts.inner(seen.unsqueeze(0))[0] * norms)[:, writes].square().mean().sqrt().clamp(min=1e-30)
    size = float(seen.square().mean().sqrt()) if seen.is_floating_point() else 1.0
    return Starting(parts.V, torch.where(writes, usual / norms.clamp(min=1e-30), torch.inf), size)


def independent_parts(weight: Float[Tensor, "d_out d_in"], applied: Positions, n: int, generator: torch.Generator) -> Parts:
    """Up to rank(W) components that sum to W, those of most effect first; spare ones read at random and write nothing.

    Singular directions of W on whitened inputs, W A^½ = Σ σ u ⊗ v with A = E[xxᵀ], lose least of the outputs when only some
    are kept. The leading ones, V = v A^-½, are uncorrelated numbers of unit variance; turned among each other until they are
    independent (FastICA), few of them are large at any one position. Source: Hyvärinen, Fast and Robust Fixed-Point
    Algorithms for Independent Component Analysis, 1999; the use for components is this library's own.
    Cost: decompositions of matrices of d_in and the rank, and up to a hundred products of the positions with these.

    Args:
        weight: W.
        applied: What it is applied to, at some thousand positions.
        n: How many components.
        generator: Draws what spare components read.
    """
    W = weight.double().cpu()
    half, inverse = _roots(_second_moment(applied.cpu(), W.shape[1]))
    left, sizes, right = torch.linalg.svd(W @ half, full_matrices=False)
    U, V = (left * sizes).T[:n].contiguous(), (right @ inverse)[:n].contiguous()
    spread = sizes[:n].square()
    n_turned = int((spread.cumsum(0) < SHARE * spread.sum()).sum()) + 1
    turn = rotation_to_independence(_inner(V[:n_turned], applied.cpu()))
    U[:n_turned], V[:n_turned] = turn @ U[:n_turned], turn @ V[:n_turned]
    norms = V.norm(dim=1, keepdim=True).clamp(min=1e-30)
    spare = torch.randn(n - len(V), W.shape[1], generator=generator, dtype=torch.float64)
    U = torch.cat([U * norms, U.new_zeros(len(spare), len(W))])
    V = torch.cat([V / norms, torch.nn.functional.normalize(spare, dim=1)])
    return Parts(U.to(weight), V.to(weight))


def rotation_to_independence(values: Float[Tensor, "position component"]) -> Float[Tensor, "component component"]:
    """The rotation R for which the columns of `values @ R.T` are as independent as FastICA makes them.

    Symmetric FastICA with log cosh. Values are uncorrelated and of unit variance; the start is R = 1, so equal values give
    equal rotations.
    """
    turn = torch.eye(values.shape[1], dtype=values.dtype)
    for _ in range(_ROUNDS):
        bent = torch.tanh(values @ turn.T)
        new = bent.T @ values / len(values) - (1 - bent.square()).mean(0).unsqueeze(1) * turn
        left, _, right = torch.linalg.svd(new, full_matrices=False)
        before, turn = turn, left @ right
        if float((1 - (turn * before).sum(1).abs()).max()) < _SETTLED:
            break
    return turn


def _inner(V: Float[Tensor, "component d_in"], applied: Positions) -> Float[Tensor, "position component"]:
    return applied.double() @ V.T if applied.is_floating_point() else V.T[applied]


def _second_moment(applied: Positions, d_in: int) -> Float[Tensor, "d_in d_in"]:
    """E[xxᵀ], a little of its mean diagonal added; of a table the shares of its columns."""
    if applied.is_floating_point():
        moment = applied.double().T @ applied.double() / len(applied)
    else:
        moment = torch.diag(torch.bincount(applied, minlength=d_in).double() / len(applied))
    return moment + torch.eye(d_in, dtype=torch.float64) * moment.diagonal().mean().clamp(min=1e-30) * _DAMPING


def _roots(moment: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]:
    """A^½ and A^-½."""
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp(min=float(values.max()) * 1e-12)
    return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T
