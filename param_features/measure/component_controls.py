"""Controls of components at the same l0: what costs nothing to find, run under the same masks."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.fit.components import Parts, least_square_parts
from param_features.measure.masked_rows import Candidate, MaskedRows

Kept = tuple[Parts, Float[Tensor, "row pos component"]]
"""Components of one matrix with their importances."""

_LARGEST_SIDE = 2**13
"""Single neurons of a longer side than this are left out where the other side is shorter: each is a row of an identity."""

CONTROLS = ("control_svd_w", "control_neurons", "control_rotated", "control_shuffled")


@torch.no_grad()
def each_control(rows: MaskedRows, candidate: Candidate, generator: torch.Generator) -> Iterator[tuple[str, Candidate]]:
    """Each control by name. At each matrix it keeps as many, over all of the rows' positions, as the candidate does.

    What is kept has importance 1 and all else 0. Contributions ‖U_c V_cᵀx‖ of all positions are ranked together.

    - `control_svd_w`: singular directions of W, those of the largest contribution kept.
    - `control_neurons`: single rows or single columns of W, whichever of the two rebuilds the matrix's outputs better; of
      tables the rows alone, since a column is a token and needs no importance. A side longer than 8,192 is left out where
      the other is shorter.
    - `control_rotated`: components that are needed anywhere, rotated at random among each other, the sum as it was.
    - `control_shuffled`: the components themselves, each position with the importances of another.

    Cost: a singular value decomposition of each matrix. Memory: a few numbers for each position and component of a matrix.
    """
    n_kept = {name: int((g > 0).sum()) for name, g in candidate.importances.items()}

    def of_sites(control: Callable[[str], Kept]) -> Candidate:
        kept = {name: control(name) for name in candidate.parts}
        return Candidate({name: parts for name, (parts, _) in kept.items()}, {name: g for name, (_, g) in kept.items()})

    yield "control_svd_w", of_sites(lambda name: strongest(rows, name, singular_parts(rows.weights[name]), n_kept[name]))
    yield "control_neurons", of_sites(lambda name: _neurons(rows, name, n_kept[name]))
    yield "control_rotated", of_sites(lambda name: _rotated(rows, name, candidate, n_kept[name], generator))
    yield "control_shuffled", shuffled(rows, candidate, generator)


def singular_parts(weight: Float[Tensor, "d_out d_in"]) -> Parts:
    """σ_c u_c ⊗ v_c, strongest first."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    return Parts((u * s).T.contiguous(), vh.contiguous())


def strongest(rows: MaskedRows, name: str, parts: Parts, n_kept: int) -> Kept:
    """The components with importance 1 where their contribution is among the largest of all real positions."""
    real = rows.real(name)
    scores = (parts.inner(rows.applied[name]).abs() * parts.U.norm(dim=1)).masked_fill(~real.unsqueeze(-1), -1)
    importances = torch.zeros_like(scores)
    best = scores.flatten().topk(min(n_kept, int(real.sum()) * parts.n)).indices
    importances.view(-1)[best] = 1
    return parts, importances


def _neurons(rows: MaskedRows, name: str, n_kept: int) -> Kept:
    weight, applied = rows.weights[name], rows.applied[name]
    d_out, d_in = weight.shape
    sides = []
    if d_out <= max(d_in, _LARGEST_SIDE) or not applied.is_floating_point():
        sides.append(Parts(torch.eye(d_out).to(weight), weight))
    if d_in <= max(d_out, _LARGEST_SIDE) and applied.is_floating_point():
        sides.append(Parts(weight.T.contiguous(), torch.eye(d_in).to(weight)))
    kept = [strongest(rows, name, parts, n_kept) for parts in sides]
    return min(kept, key=lambda of: float(of[0].change(applied, of[1])[rows.real(name)].square().sum()))


def _rotated(rows: MaskedRows, name: str, candidate: Candidate, n_kept: int, generator: torch.Generator) -> Kept:
    parts, g = candidate.parts[name], candidate.importances[name]
    needed = (g > 0).flatten(0, 1).any(0).nonzero()[:, 0]
    rotation = torch.linalg.qr(torch.randn(len(needed), len(needed), generator=generator, dtype=torch.float64)).Q
    balance = (parts.V.norm(dim=1) / parts.U.norm(dim=1).clamp(min=1e-30)).clamp(min=1e-30).sqrt().unsqueeze(1)
    U, V = parts.U * balance, parts.V / balance
    rotated = Parts(*(rotation.to(side) @ side[needed] for side in (U, V)))
    _, kept = strongest(rows, name, rotated, n_kept)
    U[needed], V[needed] = rotated.U, rotated.V
    return Parts(U, V), torch.zeros_like(g).index_copy(2, needed, kept)


def shuffled(rows: MaskedRows, candidate: Candidate, generator: torch.Generator) -> Candidate:
    """The same components, each position with the importances of another.

    One order serves all matrices of as many positions: what is needed together stays together.
    """
    orders: dict[int, Tensor] = {}
    importances = {}
    for name, g in candidate.importances.items():
        real = rows.real(name)
        n = int(real.sum())
        if n not in orders:
            orders[n] = torch.randperm(n, generator=generator)
        importances[name] = torch.zeros_like(g)
        importances[name][real] = g[real][orders[n].to(g.device)]
    return Candidate(candidate.parts, importances)


def random_parts(weight: Float[Tensor, "d_out d_in"], n: int, generator: torch.Generator) -> Parts:
    """Parts that read random directions and come closest to W together: they sum to it from d_in parts on."""
    V = torch.randn(n, weight.shape[1], generator=generator).to(weight)
    return least_square_parts(weight, torch.nn.functional.normalize(V, dim=1))
