"""Dead features of an SAE started anew on what it reconstructs worst."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_N_LOSSES = 2**16


@torch.no_grad()
def resample(sae: Any, acts: Float[Tensor, "sample d_in"], dead: Int[Tensor, " dead"], generator: torch.Generator) -> None:
    """Point dead features at samples drawn by their squared reconstruction loss.

    The decoder row becomes the sample's residual at unit norm, the encoder column the same at the living features' mean
    norm, the encoder's bias zero. Bricken et al. take the sample itself, which after the pre-encoder bias is the residual
    where nothing fires, and a fifth of the norm, for features under an L1 penalty: with so little, a feature is seldom among
    the l0 largest and dies again.

    Cost: the SAE on at most 65,536 samples.

    Args:
        sae: A training SAE of sae-lens; changed in place.
        acts: What it is trained on.
        dead: Which features.
        generator: Draws the samples.

    Source: Bricken et al. (2023), *Towards Monosemanticity*, "Neuron resampling".
    """
    if not len(dead):
        return
    sample = acts[torch.randperm(len(acts), generator=generator)[:_N_LOSSES]].to(sae.device)
    residual = sample - sae.decode(sae.encode(sample))
    weights = residual.square().sum(1).square().double().cpu()
    if not bool((weights > 0).any()):
        return
    drawn = torch.multinomial(weights, len(dead), replacement=int((weights > 0).sum()) < len(dead), generator=generator)
    rows = torch.nn.functional.normalize(residual[drawn.to(sae.device)], dim=1)
    alive = torch.ones(sae.cfg.d_sae, dtype=torch.bool, device=sae.device)
    alive[dead] = False
    norms = sae.W_enc.norm(dim=0)
    scale = norms[alive].mean() if bool(alive.any()) else norms.mean()
    sae.W_dec[dead] = rows
    sae.W_enc[:, dead] = (scale * rows).T
    sae.b_enc[dead] = 0


@torch.no_grad()
def reset_moments(optimizer: torch.optim.Optimizer, sae: Any, features: Int[Tensor, " feature"]) -> None:
    """Forget Adam's moments of these features' weights."""
    for name in ("exp_avg", "exp_avg_sq"):
        optimizer.state[sae.W_dec][name][features] = 0
        optimizer.state[sae.W_enc][name][:, features] = 0
        optimizer.state[sae.b_enc][name][features] = 0
