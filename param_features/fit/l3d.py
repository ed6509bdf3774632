"""Local Loss Landscape Decomposition: directions such that a handful of them rebuild any one sample's gradient.

Source: L3D (arXiv 2504.00194), "Sparse Principal Directions". Differs: the loss is the squared error, normalised once over
the data; V_out rows have unit norm exactly; V_in starts equal to V_out; dead features are revived.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from param_features.fit.formats.low_rank import Directions, LowRank
from param_features.fit.pursuit import pursue, rounds_for
from param_features.fit.reconstruction import square_errors, times
from param_features.fit.selection import batch_top_k
from param_features.fit.settings import FitSettings
from param_features.gradients import Gradients, is_fast_on, summed
from param_features.machine import Share


@dataclass(frozen=True)
class StepLoss:
    """A batch's loss, and what it kept and missed.

    Attributes:
        loss: What the step descends.
        error: Reconstruction error of the batch.
        coords: What entered the reconstruction, zero where a feature was not kept.
        kept: Which coordinates did.
        errors: ‖∇ − reconstruction‖² of each sample.
    """

    loss: Float[Tensor, ""]
    error: float
    coords: Float[Tensor, "sample feature"]
    kept: Bool[Tensor, "sample feature"]
    errors: Float[Tensor, " sample"]


def l3d_loss(
    gradients: Gradients,
    square_norm: Float[Tensor, " sample"],
    v_in: LowRank,
    v_out: LowRank,
    *,
    l0: float,
    dead: Tensor,
    settings: FitSettings,
    share: Share | None = None,
) -> StepLoss:
    """The reconstruction loss of a batch, with the penalty or the auxiliary loss that the settings ask for.

    Args:
        gradients: Scaled so that the data's mean square norm is 1.
        square_norm: ‖∇‖² of each sample.
        v_in: Maps gradients to coordinates.
        v_out: Maps coordinates back; the same object as `v_in` in a tied fit.
        l0: Mean number kept per sample at this step.
        dead: Boolean [feature], features that the auxiliary loss revives.
        settings: The fit's settings.
        share: Which part of the batch these samples are, where processes share it: one threshold serves the whole batch.
    """
    share = share or Share()
    if settings.selection == "l1":
        return _penalised_loss(gradients, square_norm, v_out, settings.l1)
    is_sparse = l0 < _FEW * v_in.n_features and all(gradient.samples_well for gradient in gradients.values())
    if settings.selection == "pursuit":
        return _pursued_loss(gradients, square_norm, v_in, v_out, l0, share)
    is_reviving = settings.revive > 0 and bool(dead.any())
    if is_sparse:
        with torch.no_grad():
            all_coords = v_in.overlaps(gradients)
        kept, revived = _strongest_of_all(all_coords, dead, l0, share)
        used = kept | revived if is_reviving else kept
        coords, overlaps = v_in.overlaps(gradients, used), v_out.overlaps(gradients, used)
    else:
        coords, overlaps = v_in.joined(v_out).overlaps(gradients).chunk(2, dim=1)
        kept, revived = _strongest_of_all(coords, dead, l0, share)
    gram, living = v_out.gram(), coords * kept
    errors = square_errors(living, overlaps, gram, square_norm, is_sparse=is_sparse)
    loss = errors.mean()
    if is_reviving:
        taken = times(living.detach(), v_out.map(torch.detach).gram(v_out), is_sparse=is_sparse)
        revived_errors = square_errors(coords * revived, overlaps - taken, gram, errors.detach(), is_sparse=is_sparse)
        loss = loss + settings.revive * revived_errors.mean()
    return _step_loss(loss, errors, square_norm, living, kept)


_FEW = 0.1
"""Below this share of coordinates kept, products with them leave the zeros out."""

_SILENT = 1e-3
"""Under an L1 penalty a feature counts as dead when no gradient of unit mean square norm moves it by this much."""


def _penalised_loss(
    gradients: Gradients, square_norm: Float[Tensor, " sample"], directions: LowRank, weight: float
) -> StepLoss:
    coords = directions.overlaps(gradients)
    errors = square_errors(coords, coords, directions.gram(), square_norm)
    loss = errors.mean() + weight * coords.abs().sum(1).mean()
    return _step_loss(loss, errors, square_norm, coords, coords.detach().abs() > _SILENT)


def _pursued_loss(
    gradients: Gradients,
    square_norm: Float[Tensor, " sample"],
    v_in: LowRank,
    v_out: LowRank,
    l0: float,
    share: Share,
) -> StepLoss:
    """The error at least-squares coordinates, whose gradient is that with the coordinates held fixed; and V_in's own.

    V_in learns to tell the coordinates from the gradient, those of features that are not taken, zero, among them.
    """
    linear_coords, overlaps = v_in.joined(v_out).overlaps(gradients).chunk(2, dim=1)
    gram = v_out.gram()
    cut_at = l0 if share.is_whole else None  # other processes' samples count for the threshold too
    path = pursue(overlaps.detach(), gram.detach(), rounds_for(l0, v_out.n_features), l0=cut_at)
    coords = path.coords(replace(path, reach=share.gathered(path.reach)).threshold(l0))
    is_sparse = l0 < _FEW * v_out.n_features and is_fast_on(coords.device)
    errors = square_errors(coords, overlaps, gram, square_norm, is_sparse=is_sparse)
    loss = errors.mean() + (linear_coords - coords).square().sum(1).mean()
    return _step_loss(loss, errors, square_norm, coords, coords != 0)


def _step_loss(loss: Tensor, errors: Tensor, square_norm: Tensor, coords: Tensor, kept: Tensor) -> StepLoss:
    return StepLoss(loss, float(errors.detach().sum() / square_norm.sum()), coords.detach(), kept, errors.detach())


def _strongest_of_all(coords: Tensor, dead: Tensor, l0: float, share: Share) -> tuple[Tensor, Tensor]:
    """Which coordinates of these samples are among the batch's largest, and which of dead features are among theirs."""
    gathered = share.gathered(coords)
    return share.of(batch_top_k(gathered, l0)), share.of(_strongest(gathered, dead, l0))


def _strongest(coords: Tensor, dead: Tensor, l0: float) -> Bool[Tensor, "sample feature"]:
    """The dead features' strongest coordinates, which the auxiliary loss asks to rebuild what the living leave over."""
    mask = torch.zeros_like(coords, dtype=torch.bool)
    if bool(dead.any()):
        mask[:, dead] = batch_top_k(coords[:, dead], min(l0, int(dead.sum())))
    return mask


@torch.no_grad()
def remove_parallel(directions: Directions) -> None:
    """Take from each row's gradient the part that only changes the row's length: its share along ∂‖v_k‖²/∂tensors.

    Without it Adam's moments follow a push that the renormalisation undoes.
    """
    grads = [tensor.grad for tensor in directions.tensors if tensor.grad is not None]
    if len(grads) < len(directions.tensors):
        return
    lengthening = directions.lengthening()
    along = summed([_per_feature(grad * part) for grad, part in zip(grads, lengthening, strict=True)])
    square = summed([_per_feature(part.square()) for part in lengthening])
    share = along / square.clamp(min=1e-30)
    for grad, part in zip(grads, lengthening, strict=True):
        grad.sub_(share.to(part.device).reshape(-1, *(1 for _ in part.shape[1:])) * part)


def _per_feature(tensor: Float[Tensor, " feature *axes"]) -> Float[Tensor, " feature"]:
    return tensor.sum(tuple(range(1, tensor.dim())))


@torch.no_grad()
def renormalize(directions: Directions) -> None:
    """Scale every row to unit norm and balance its factors, in place."""
    directions.balance_()
    directions.scale_(1 / directions.norm().clamp(min=1e-12))
