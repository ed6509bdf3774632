"""The local learning coefficient: how degenerate the loss is around the trained weights, in all or few directions."""

from dataclasses import dataclass
from math import hypot, log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from param_features.circuits import read_metric
from param_features.development.langevin import ChainSettings, LocalLoss, r_hat, sampled_losses
from param_features.errors import ConvergenceError, InputError, SettingError
from param_features.fit.formats import LowRank
from param_features.fitted import N_SPREADS, Fitted
from param_features.machine import own_modes, public
from param_features.params import held_still

_PRINTED = 0.0005
"""Half of the last digit that is printed."""


@dataclass(frozen=True, eq=False)
class LearningCoefficient:
    """An estimate of λ, nβ (E[L] − L(w₀)), with its chains.

    Attributes:
        of_chains: Each chain's own estimate, over its draws after the burn-in.
        losses: Every step's loss on its batch, burn-in included: the trace that shows whether a chain has settled.
        start: L(w₀), the mean loss on all rows.
        n_beta: nβ.
        n_burn_in: Steps left out at the front of each chain.
        r_hat: Rank-normalised split R̂ of the losses after the burn-in; 1 where chains agree.
        d: Dimensions that were sampled.
        batch_noise: Standard error that the draw of batches adds to every chain alike; 0 where it was not measured.
    """

    of_chains: Float[Tensor, " chain"]
    losses: Float[Tensor, "chain step"]
    start: float
    n_beta: float
    n_burn_in: int
    r_hat: float
    d: int
    batch_noise: float = 0.0

    @property
    def mean(self) -> float:
        """The estimate: the mean over chains."""
        return float(self.of_chains.mean())

    @property
    def std(self) -> float:
        """The standard deviation between chains; NaN for one. Chains see the same batches: see `batch_noise`."""
        return float(self.of_chains.std())

    def __repr__(self) -> str:
        """The estimate, what a regular model would have, and the diagnostics."""
        n, by_batches = len(self.of_chains), f"± {self.batch_noise:.3f} by the draw of batches"
        spread = f"± {self.std:.3f} over {n} chains" if n > 1 else "of one chain, so nothing tells whether it has settled"
        r_hat = f"R-hat {self.r_hat:.3f}; " if n > 1 else ""
        note = "; below 0, so the weights are no minimum of this loss" if self.is_below_zero else ""
        return (
            f"LearningCoefficient {round(self.mean, 3) + 0.0:.3f} {spread}, {by_batches} (d/2 = {self.d / 2:g}; {r_hat}"
            f"nβ {self.n_beta:.4g}){note}"
        )

    @property
    def is_below_zero(self) -> bool:
        """Whether the mean lies below 0 by more than two standard errors of chains and batches, and 0.0005."""
        of_chains = self.std / len(self.of_chains) ** 0.5 if len(self.of_chains) > 1 else 0.0
        return self.mean < -max(N_SPREADS * hypot(of_chains, self.batch_noise), _PRINTED)


@public
@own_modes()
def learning_coefficient(
    features: Fitted,
    tokens: Any = None,
    *,
    along: Any = "span",
    inputs: Any = None,
    loss: Any = "loss",
    n_beta: float | None = None,
    lr: float = 1e-4,
    localization: float = 100.0,
    n_chains: int = 4,
    n_steps: int = 400,
    n_burn_in: int | None = None,
    batch_size: int = 64,
    max_r_hat: float = 1.1,
    seed: int = 0,
) -> LearningCoefficient:
    """The local learning coefficient of the decomposed parameters, of one feature's direction, or of the features' span.

    Chains of stochastic-gradient Langevin dynamics, those of devinterp, sample w around the weights w₀ with density
    ∝ exp(−nβ L(w) − γ/2 ‖w − w₀‖²); all other weights stay. A regular model of d dimensions has d/2, a degenerate one less.
    Along directions the coordinates are orthonormal, so that γ is the same length in all of them.

    Cost: n_chains · n_steps forward and backward passes of a batch, and a copy of the model. The user's random state is put
    back.

    Args:
        features: Bound to a model.
        tokens: Rows that the loss is measured on; the features' own held-out examples by default.
        along: `"span"`, the span of all features; `"all"`, every decomposed parameter in full; or one feature's number, or a
            list of them, whose span is meant.
        inputs: Instead of tokens, anything that the module takes.
        loss: As in `pf.development.pushes`.
        n_beta: Inverse temperature times the number of rows; n / log n by default.
        lr: Step size of the dynamics. Too large and chains diverge, too small and they do not settle.
        localization: γ. It lends curvature to directions that have none: the estimate is right where nβ times the loss's
            own curvature is far above it.
        n_chains: Independent chains.
        n_steps: Steps of each chain.
        n_burn_in: Of these, how many are left out; a half by default.
        batch_size: Rows of a step, drawn anew each time.
        max_r_hat: Above it the chains have not converged.
        seed: Of chains and batches.

    Returns:
        The estimate with traces and R̂.

    Raises:
        ConvergenceError: The chains have not converged, or diverged; says what to change.
        NotBoundError: The features were loaded without a model.
        FeatureCountError: There is no such feature.
        SettingError: A setting is out of range, or lr · localization is 4 or more, with which every chain diverges.
        InputError: Fewer rows than a batch, or inputs that the model cannot take.
        MissingExtraError: devinterp cannot be imported.

    Source: Lau et al. 2023 (2308.12108), "The Local Learning Coefficient"; Vehtari et al. 2021 (1903.08008) for R̂.
    """
    engine, metric = features.bound_engine("learning_coefficient"), read_metric(loss)
    rows = features.inputs_or_examples(tokens, inputs)
    settings = ChainSettings(
        n_beta=len(rows) / log(max(len(rows), 3)) if n_beta is None else n_beta,
        lr=lr,
        localization=localization,
        n_chains=n_chains,
        n_steps=n_steps,
        n_burn_in=n_steps // 2 if n_burn_in is None else n_burn_in,
        batch_size=batch_size,
        seed=seed,
    )
    if len(rows) < batch_size:
        raise InputError(f"{len(rows)} rows are fewer than batch_size={batch_size}. Give more rows, or a smaller batch.")
    local_loss = LocalLoss(engine, _basis(features, along), rows, metric)
    with held_still(engine.adapter.module), local_loss.placed:
        at_start = local_loss.row_losses(batch_size)
        losses = sampled_losses(local_loss, settings)
    start = float(at_start.mean())
    settled = losses[:, settings.n_burn_in :]
    result = LearningCoefficient(
        of_chains=settings.n_beta * (settled.mean(1) - start),
        losses=losses,
        start=start,
        n_beta=settings.n_beta,
        n_burn_in=settings.n_burn_in,
        r_hat=r_hat(settled),
        d=local_loss.n_dimensions,
        batch_noise=settings.n_beta * float(at_start.std(correction=0)) / (settled.shape[1] * batch_size) ** 0.5,
    )
    _check_converged(result, max_r_hat, has_diverged=local_loss.has_diverged(settings))
    return result


def _check_converged(result: LearningCoefficient, max_r_hat: float, *, has_diverged: bool) -> None:
    if has_diverged or not bool(torch.isfinite(result.losses).all()):
        raise ConvergenceError(
            "A chain diverged: its weights went far beyond where a minimum holds them, or to infinity. Take a smaller lr=, "
            "a smaller n_beta= or a larger localization=."
        )
    if len(result.of_chains) > 1 and not result.r_hat <= max_r_hat:
        raise ConvergenceError(
            f"The chains have not converged: R-hat {result.r_hat:.3f} is above max_r_hat={max_r_hat:g} (estimates "
            f"{', '.join(f'{value:.2f}' for value in result.of_chains.tolist())}). Take more n_steps= and n_burn_in=, or "
            "another lr=."
        )


def _basis(features: Fitted, along: Any) -> LowRank | None:
    """The directions meant; None for every parameter in full."""
    if isinstance(along, str):
        if along not in ("span", "all"):
            raise SettingError(f"along={along!r} is unknown. Accepted: 'span', 'all', a feature's number or a list of them.")
        return features.v_out if along == "span" else None
    chosen = [along] if isinstance(along, int) else list(along)
    if not chosen:
        raise SettingError("along= is empty. Give numbers of features, 'span' or 'all'.")
    for feature in chosen:
        features.check_feature(feature)
    return features.v_out.rows(chosen)
