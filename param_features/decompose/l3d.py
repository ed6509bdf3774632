"""Local Loss Landscape Decomposition: directions such that a handful of them rebuild any one sample's gradient.

Source: L3D (arXiv 2504.00194), "Sparse Principal Directions". Differs: the loss is the squared error, normalised once over
the data; V_out rows have unit norm exactly; V_in starts equal to V_out; dead features are revived.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.decompose.reconstruction import square_errors
from param_features.decompose.selection import batch_top_k
from param_features.decompose.settings import FitSettings
from param_features.directions import Directions, LowRank
from param_features.gradients import Gradients


@dataclass(frozen=True)
class StepLoss:
    """One batch's loss and what it saw.

    Attributes:
        loss: What the step descends.
        error: Reconstruction error of the batch.
        kept: Which coordinates entered the reconstruction.
        errors: ‖∇ − reconstruction‖² of each sample.
    """

    loss: Float[Tensor, ""]
    error: float
    kept: Tensor
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
    """
    if v_in is v_out:
        coords = overlaps = v_out.inner(gradients)
    else:
        coords, overlaps = v_in.joined(v_out).inner(gradients).chunk(2, dim=1)
    gram = v_out.gram()
    kept = torch.ones_like(coords, dtype=torch.bool) if settings.selection == "l1" else batch_top_k(coords, l0)
    errors = square_errors(coords * kept, overlaps, gram, square_norm)
    loss = errors.mean()
    if settings.selection == "l1":
        loss = loss + settings.l1 * coords.abs().sum(1).mean()
        kept = coords.detach().abs() > _SILENT
    elif settings.revive and bool(dead.any()):
        loss = loss + settings.revive * _revival(coords, overlaps, gram, coords * kept, dead, errors.detach(), l0)
    return StepLoss(loss, float(errors.detach().sum() / square_norm.sum()), kept, errors.detach())


_SILENT = 1e-3
"""Under an L1 penalty a feature counts as dead when no gradient of unit mean square norm moves it by this much."""


def _revival(
    coords: Tensor, overlaps: Tensor, gram: Tensor, used: Tensor, dead: Tensor, errors: Tensor, l0: float
) -> Float[Tensor, ""]:
    """How badly the dead features' strongest coordinates rebuild what the living leave over.

    The residual's overlaps with the dead rows are ⟨∇, v_d⟩ − Σ_k c_k Gram_kd; the living are held fixed.
    """
    residual_overlaps = overlaps[:, dead] - used.detach() @ gram[:, dead]
    coords = coords[:, dead]
    kept = batch_top_k(coords, min(l0, coords.shape[1]))
    return square_errors(coords * kept, residual_overlaps, gram[dead][:, dead], errors).mean()


@torch.no_grad()
def remove_parallel(directions: Directions) -> None:
    """Take from each row's gradient the part that only changes the row's length: its share along ∂‖v_k‖²/∂tensors.

    Without it Adam's moments follow a push that the renormalisation undoes.
    """
    grads = [tensor.grad for tensor in directions.tensors if tensor.grad is not None]
    if len(grads) < len(directions.tensors):
        return
    lengthening = directions.lengthening()
    along = torch.stack([_per_feature(grad * part) for grad, part in zip(grads, lengthening, strict=True)]).sum(0)
    square = torch.stack([_per_feature(part.square()) for part in lengthening]).sum(0)
    share = along / square.clamp(min=1e-30)
    for grad, part in zip(grads, lengthening, strict=True):
        grad.sub_(share.reshape(-1, *(1 for _ in part.shape[1:])) * part)


def _per_feature(tensor: Float[Tensor, " feature *axes"]) -> Float[Tensor, " feature"]:
    return tensor.sum(tuple(range(1, tensor.dim())))


@torch.no_grad()
def renormalize(directions: Directions) -> None:
    """Scale every row to unit norm and balance its factors, in place."""
    directions.balance_()
    directions.scale_(1 / directions.norm().clamp(min=1e-12))
